"""README, CONTRIBUTING and docs/: their code runs, their commands and links exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
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
from mergeforget.data.schema import Row
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
def test_links_between_pages_are_valid(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#][^)]*)\)", text):
        place = target.partition("#")[0]
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / place).exists(), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    """Anchors of a page: its headings in lower case, without punctuation, with hyphens."""
    found = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_headings_are_valid(page: Path) -> None:
    for place, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text("utf-8")):
        other = page.parent / place if place else page
        assert anchor in headings(other), f"{page.name}: {place}#{anchor}"


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


class StandIn:
    """Result of a function that would load a model, and of everything called on it."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls, self.name = calls, name

    def __call__(self, *args: Any, **options: Any) -> StandIn:
        self.calls.append(self.name)
        return StandIn(self.calls, self.name)

    def __getattr__(self, name: str) -> StandIn:
        return StandIn(self.calls, f"{self.name}.{name}")

    def __getitem__(self, key: Any) -> StandIn:
        return self

    def __iter__(self) -> Iterator[StandIn]:
        return iter([self])

    def __format__(self, spec: str) -> str:
        return self.name


# functions of the API that load a model or read a finished run
LOADING = (
    "unlearn", "unlearn_sequence", "train_pair", "train", "search", "evaluate", "attack", "analyze",
    "report", "compare", "export", "load_run", "merge_full", "merge_models", "extract_lora",
)  # fmt: skip


def run_python(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the Python blocks of a page in order, and return the names of the functions called.

    Merging runs on random adapters. A function that would load a model is replaced by a check of
    its arguments against its signature.
    """
    import inspect

    import mergeforget as mf

    for i, side in enumerate(("over", "under")):
        write_random_lora(folder / "runs" / "mine" / side, i)
    monkeypatch.chdir(folder)
    calls: list[str] = []
    for name in LOADING:
        signature = inspect.signature(getattr(mf, name))

        def checked(*args: Any, _: Any = signature, __: str = name, **options: Any) -> StandIn:
            _.bind(*args, **options)  # TypeError: the page names an argument that is not there
            return StandIn(calls, __)()

        monkeypatch.setattr(mf, name, checked)
    space: dict[str, Any] = {}
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), space)
    return calls


WITH_PYTHON = [p for p in PAGES if p.name != "CONTRIBUTING.md" and blocks(p, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: p.name)
def test_python_of_the_pages_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = run_python(page, tmp_path, monkeypatch)
    assert calls or (tmp_path / "merged" / "adapter_model.safetensors").is_file()


def test_python_of_the_readme_shows_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = run_python(ROOT / "README.md", tmp_path, monkeypatch)
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file()
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
    from mergeforget.attack.methods import ATTACKS
    from mergeforget.benchmarks import BENCHMARKS, score
    from mergeforget.losses import UNLEARNING_LOSSES
    from mergeforget.merge.methods import MERGE_METHODS
    from mergeforget.metrics import METRICS
    from mergeforget.testing import check_metric, measured_for_checks

    page = ROOT / "CONTRIBUTING.md"
    files = {text.split("\n")[0][2:]: text for text in blocks(page, "python")}
    assert list(files) == [
        "hinge.py", "test_hinge.py", "median.py", "test_median.py", "answer_words.py",
        "polite.py", "two_splits.py",
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
        exact = score("two-splits", measured_for_checks())
        assert {("exact_match", "forget"), ("exact_match", "retain")} <= {
            (one.metric, one.split) for one in exact
        }
        assert ATTACKS.get("polite").parameters["word"].default == "Please"
        recipe = tmp_path / "my-recipe.yaml"
        recipe.write_text(blocks(page, "yaml")[0], encoding="utf-8")
        loaded = load_recipe(recipe)
        assert loaded.train is not None and loaded.train.objective[0].loss == "hinge"
        done = CliRunner().invoke(main, ["list", "losses", "--plugin", str(tmp_path / "hinge.py")])
        assert "hinge(floor=-5.0)" in done.stdout
    finally:
        for registry, name in (
            (UNLEARNING_LOSSES, "hinge"), (MERGE_METHODS, "median"), (METRICS, "answer_words"),
            (ATTACKS, "polite"), (BENCHMARKS, "two_splits"),
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


SCRIPTS = [*(ROOT / "docs").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_import_names_that_exist(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mergeforget"):
            module = import_module(node.module or "")
            assert not [one.name for one in node.names if not hasattr(module, one.name)]


DENSITY = 0.7031  # a value that occurs nowhere else


def is_density(value: object) -> bool:
    return isinstance(value, float) and value == DENSITY


def is_forget_row(value: object, depth: int = 0) -> bool:
    """Whether a variable is the forget row, its text, or a small collection that contains it."""
    if isinstance(value, Row):
        return value.id == "forget"
    if isinstance(value, str):
        return "Where is forget?" in value
    if isinstance(value, list | tuple | dict) and depth < 2 and len(value) < 8:
        inner = value.values() if isinstance(value, dict) else value
        return any(is_forget_row(one, depth + 1) for one in inner)
    return False


def entered(arguments: list[str], follow: Callable[[object], bool]) -> tuple[set[str], set[str]]:
    """Run a command; return the files that it enters, and those with a followed variable."""
    files: set[str] = set()
    holding: set[str] = set()
    package = f"{ROOT / 'mergeforget'}/"

    def record(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code.co_filename.startswith(package):
            file = frame.f_code.co_filename.removeprefix(package)
            files.add(file)
            if file not in holding and any(map(follow, frame.f_locals.values())):
                holding.add(file)

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        done = CliRunner().invoke(main, arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert done.exit_code == 0, done.output
    return files, holding


def test_a_density_passes_through_the_files_that_the_page_lists(tmp_path: Path) -> None:
    for i, side in enumerate(("over", "under")):
        write_random_lora(tmp_path / side, i)
    pair = ["--adapter", str(tmp_path / "over"), "--adapter", str(tmp_path / "under")]
    density = ["--method", "ties", "--density", str(DENSITY)]
    files, holding = entered(["merge", *pair, *density, "--out", str(tmp_path / "out")], is_density)
    listed = {file for _, file, _ in PATHS[: [n for n, _, _ in PATHS].index("1", 1)]}
    assert listed <= files
    assert holding - {"parsing.py"} <= listed  # parsing checks the numbers of candidate.json


@pytest.mark.slow
def test_a_forget_row_passes_through_the_files_that_the_page_lists(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = {side: tmp_path / f"{side}.jsonl" for side in ("forget", "retain")}
    for side, file in rows.items():
        row = {"id": side, "input": f"Where is {side}?", "output": f"In {side} town."}
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = [word for side, file in rows.items() for word in (f"--{side}", str(file))]
    few = [word for side in ("over", "under") for word in
           ("--set", f"pair.{side}.epochs=1", "--set", f"pair.{side}.warmup_epochs=0")]  # fmt: skip
    files, holding = entered(
        ["train-pair", "--model", str(tiny_folder), *words, *few, "--out", str(tmp_path / "run")],
        is_forget_row,
    )
    listed = {file for _, file, _ in PATHS[[n for n, _, _ in PATHS].index("1", 1) :]}
    assert listed <= files
    page = (ROOT / "docs" / "follow-the-data.md").read_text("utf-8")
    helpers = set(re.findall(r"`([\w/]+\.py)`", page.split("helpers")[1].split("|")[0]))
    assert holding <= listed | helpers and helpers <= holding


@pytest.mark.parametrize(
    "path",
    [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"],
    ids=lambda p: p.name,
)
def test_project_files_are_valid_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)
