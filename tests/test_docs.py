"""README, CONTRIBUTING and docs/: their code runs, their commands and links exist."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mergeforget.adapter import Adapter, LowRankDelta, write_adapter
from mergeforget.cli import main
from mergeforget.recipe import load_recipe
from mergeforget.registry import load_plugin

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "study.md"),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text("utf-8")) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Every mergeforget command of the page's bash and text blocks, without trailing remarks."""
    found = []
    for text in blocks(page, "bash") + blocks(page, "text"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("mergeforget "):
                plain = re.split(r"\s{2,}|\s+#", line.strip())[0]
                found.append(shlex.split(plain.replace("[", "").replace("]", "")))
    return [words for words in found if len(words) > 1]  # not a row of a table


COMMANDS = [(page.name, words) for page in PAGES for words in commands(page)]


def options_of(command: click.Command) -> set[str]:
    names = {n for p in command.params for n in (*p.opts, *p.secondary_opts)}
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            names |= options_of(inner)
    return names | {"--help"}


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{p}: {' '.join(w)[:60]}" for p, w in COMMANDS]
)
def test_commands_and_options_of_the_pages_exist(page: str, words: list[str]) -> None:
    command = main.get_command(click.Context(main), words[1])
    assert command is not None, f"{page}: mergeforget {words[1]}"
    given = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
    assert given <= options_of(command)


def test_the_readme_names_every_command() -> None:
    named = {words[1] for words in commands(ROOT / "README.md")}
    assert named == set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#][^)]*)\)", text):
        place = target.partition("#")[0]
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / place).exists(), f"{page.name}: {target}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in PAGES:
        if page.parent.name == "docs" and page.name != "index.md":
            assert f"({page.name})" in index


def write_random_lora(folder: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, 6)), draw.standard_normal((8, 2))
    delta = LowRankDelta(a.astype(np.float32), b.astype(np.float32), 1.0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "tiny"}
    write_adapter(Adapter(folder.name, {"model.layers.0.q_proj": delta}, config), folder)


class Stand:
    """Stands for what a training, a search or an evaluation returns in the README."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls, self.name = calls, name

    def __call__(self, *args: Any, **options: Any) -> Stand:
        self.calls.append(self.name)
        return Stand(self.calls, self.name)

    def __getattr__(self, name: str) -> Stand:
        return Stand(self.calls, f"{self.name}.{name}")


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    import mergeforget as mf

    for i, side in enumerate(("over", "under")):
        write_random_lora(tmp_path / "runs" / "mine" / side, i)
    monkeypatch.chdir(tmp_path)
    others = blocks(ROOT / "README.md", "python")
    merging = next(text for text in others if "mf.merge(" in text)
    exec(merging, {})
    others.remove(merging)
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file()
    calls: list[str] = []
    for name in ("unlearn", "train_pair", "search", "evaluate", "attack", "export"):
        signature = inspect.signature(getattr(mf, name))

        def checked(*args: Any, _: Any = signature, __: str = name, **options: Any) -> Stand:
            _.bind(*args, **options)  # TypeError: the README names an argument that is not there
            return Stand(calls, __)()

        monkeypatch.setattr(mf, name, checked)
    for text in others:
        exec(text, {"mf": mf})
    assert {
        "unlearn.export",
        "train_pair",
        "search",
        "evaluate.to_pandas",
        "attack.to_pandas",
        "export",
    } <= {*calls}


def test_worked_examples_of_contributing_conform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeforget.losses import UNLEARNING_LOSSES
    from mergeforget.merge.methods import MERGE_METHODS
    from mergeforget.metrics import METRICS
    from mergeforget.testing import check_metric

    page = ROOT / "CONTRIBUTING.md"
    files = {text.split("\n")[0][2:]: text for text in blocks(page, "python")}
    assert list(files) == [
        "hinge.py", "test_hinge.py", "median.py", "test_median.py", "answer_words.py",
    ]  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    try:
        for name in files:
            if not name.startswith("test_"):
                load_plugin(tmp_path / name)
        for name in ("test_hinge", "test_median"):
            space: dict[str, Any] = {}
            exec(files[f"{name}.py"], space)
            next(value for key, value in space.items() if key.startswith("test_"))()
        check_metric("answer_words")
        recipe = tmp_path / "my-recipe.yaml"
        recipe.write_text(blocks(page, "yaml")[0], encoding="utf-8")
        loaded = load_recipe(recipe)
        assert loaded.train is not None and loaded.train.objective[0].loss == "hinge"
        done = CliRunner().invoke(main, ["list", "losses", "--plugin", str(tmp_path / "hinge.py")])
        assert "hinge(floor=-5.0)" in done.stdout
    finally:
        for registry, name in (
            (UNLEARNING_LOSSES, "hinge"), (MERGE_METHODS, "median"), (METRICS, "answer_words"),
        ):  # fmt: skip
            registry._entries.pop(name, None)


PATHS = re.findall(
    r"^\| +(\d+) \| `([\w/.]+)` \| `(\w+)` \|",
    (ROOT / "docs" / "follow-the-data.md").read_text("utf-8"),
    re.MULTILINE,
)


def test_the_paths_of_the_data_are_short_and_exist() -> None:
    starts = [i for i, (number, _, _) in enumerate(PATHS) if number == "1"]
    assert len(starts) == 2
    density, row = PATHS[: starts[1]], PATHS[starts[1] :]
    assert len({file for _, file, _ in density}) <= 12
    assert len({file for _, file, _ in row}) <= 20
    text = (ROOT / "docs" / "follow-the-data.md").read_text("utf-8")
    assert f"{len(density)} files" in text and f"{len(row)} files" in text
    for _, file, name in PATHS:
        module = import_module("mergeforget." + file.removesuffix(".py").replace("/", "."))
        found = getattr(module, name, None)
        assert found is not None, f"{file} has no {name}"


@pytest.mark.parametrize(
    "path",
    [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"],
    ids=lambda p: p.name,
)
def test_project_files_are_valid_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)
