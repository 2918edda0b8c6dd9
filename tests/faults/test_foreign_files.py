"""Untrusted models, folders and names: no code, no traceback, no file elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mergeforget as mf
from mergeforget.analysis.verification import verify_evidence
from mergeforget.cli import main
from mergeforget.errors import InputError, MergeforgetError
from mergeforget.files import read_json, write_json, write_jsonl, write_text
from mergeforget.models import load_model
from mergeforget.parsing import safe_pattern
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.replace import replacing, write_lock
from mergeforget.run import Run
from mergeforget.testing.fuzzing import Counted, fuzz_target
from mergeforget.testing.parsers import FuzzedParser
from mergeforget.testing.writers import WRITERS

ROWS = [{"id": "a", "input": "Who is Ada?", "output": "A baker."}]
GIANT = [{"id": "a", "input": "Who is Ada?", "output": "x" * 10_000_000}]


@pytest.fixture
def foreign(tmp_path: Path, tiny_folder: Path) -> Run:
    """A run folder whose model brings code, which its recipe allows; the code leaves a file."""
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    ran = tmp_path / "ran"
    (model / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nraise SystemExit('own code')\n"
    )
    for name in ("config.json", "tokenizer_config.json"):
        own = {
            "AutoConfig": "own.C",
            "AutoModelForCausalLM": "own.M",
            "AutoTokenizer": ["own.T", None],
        }
        write_json(
            model / name,
            json.loads((model / name).read_text()) | {"auto_map": own, "model_type": "own"},
        )
    run = Run(tmp_path / "run")
    recipe = change(load_recipe("zjuklab"), model={"name": str(model)})
    save_recipe(recipe, run.recipe)
    text = run.recipe.read_text().replace("model:\n", "model:\n  trust_remote_code: true\n", 1)
    assert "trust_remote_code: true" in text
    run.recipe.write_text(text)
    for split in ("forget", "retain", "holdout"):
        write_jsonl(run.data / f"{split}.jsonl", [{**ROWS[0], "id": split}])
    candidate = run.candidates / "ties-factors-d0.50"
    write_json(candidate / "candidate.json", {"method": "ties", "density": 0.5})
    write_json(run.manifest, {"base": {"path": str(model)}})
    return run


def test_a_run_folder_runs_no_code_in_any_command(
    foreign: Run, tmp_path: Path, save_adapter: Callable[..., Path]
) -> None:
    for folder in (foreign.candidates / "ties-factors-d0.50", foreign.over, foreign.under):
        save_adapter(folder)
    data = [w for s in ("forget", "retain") for w in (f"--{s}", str(foreign.data / f"{s}.jsonl"))]
    root, recipe = str(foreign.root), str(foreign.recipe)
    plan = ["plan", recipe, *data]
    for words in (
        ["evaluate", root], ["search", root], ["attack", root, "prompts"], plan,
        ["export", root, "--candidate", "ties-factors-d0.50"],
        ["train-pair", "--recipe", recipe, *data, "--out", str(tmp_path / "new")],
    ):  # fmt: skip
        done = CliRunner().invoke(main, words)
        assert done.exit_code in (2, 3, 4), (words, done.output)
        assert not (tmp_path / "ran").exists(), words
    CliRunner().invoke(main, ["--trust-remote-code", *plan])
    assert (tmp_path / "ran").exists()  # the check can fail


@pytest.mark.parametrize("long", ["x" * 300, "a\0b", "recipe.yaml/below"])
def test_impossible_file_names_are_input_errors(long: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    name = str(tmp_path / long)
    calls: list[Callable[[], Any]] = [
        lambda: mf.load_run(name),
        lambda: mf.evaluate(name, forget=name),
        lambda: mf.merge([name, name]),
        lambda: mf.read_data([f"{name}.jsonl"]),
        lambda: mf.read_data([name]),
        lambda: mf.score([name]),
        lambda: mf.verify(name),
        lambda: mf.report(name),
        lambda: mf.compare([name]),
        lambda: mf.train_pair(name, forget=name, retain=name, out=tmp_path / "out"),
        lambda: mf.train_pair("smollm2", forget=name, retain=name, out=name),
        lambda: load_recipe(name),
        lambda: load_model(name),
        lambda: write_text(Path(name), ""),
    ]
    others = []
    for number, call in enumerate(calls):
        try:
            call()
        except MergeforgetError:
            continue
        except Exception as error:
            others.append((number, repr(error)[:80]))
        else:
            others.append((number, "no error"))
    assert not others


def test_a_symlink_cycle_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for write in (replacing, write_lock):
        with pytest.raises(InputError, match="Cannot write"), write(tmp_path / "one"):
            pass


def test_rows_of_ten_megabytes_are_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mergeforget.models.load_model", never)
    chat = [{"messages": [{"role": "user", "content": GIANT[0]["output"]},
                          {"role": "assistant", "content": "A baker."}]}]  # fmt: skip
    other = [ROWS[0] | {"paraphrased": GIANT[0]["output"]}]
    for rows in (GIANT, chat, other):
        write_jsonl(tmp_path / "giant.jsonl", rows)
        giant = str(tmp_path / "giant.jsonl")
        commands = [
            ["data", "check", giant],
            ["evaluate", "--model", "smollm2", "--forget", giant],
            ["attack", "prompts", "--model", "smollm2", "--forget", giant],
            ["train-pair", "--forget", giant, "--retain", giant, "--out", str(tmp_path / "b")],
        ]
        for words in commands if rows is GIANT else commands[:1]:
            done = CliRunner().invoke(main, words)
            assert done.exit_code == 4 and "10,000,000 characters" in done.stderr, (
                words,
                done.output,
            )
    write_jsonl(tmp_path / "d.jsonl", [{"id": "a", "document": GIANT[0]["output"]}])
    document = str(tmp_path / "d.jsonl")
    done = CliRunner().invoke(
        main, ["evaluate", "--model", "smollm2", "--members", document, "--nonmembers", document]
    )
    assert done.exit_code == 4 and "10,000,000 characters" in done.stderr


@pytest.mark.parametrize(
    "pattern", ["(a{0,50}){0,50}b", "(a|aa){40}$", ".*.*.*.*.*x", "(a|b|ab)*c"]
)
def test_patterns_that_backtrack_are_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="exponential"):
        safe_pattern(pattern, "target_modules")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.layers\.(\d+)\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
        r"^(?!.*vision)(?=.*layers).*_proj$",
        r"model\.layers\.([0-9]|1[0-9]|2[0-7])\.mlp\..*",
        "(ab)*[a-z]{1,9}",
    ],
)
def test_usual_patterns_of_modules_are_accepted(pattern: str) -> None:
    assert safe_pattern(pattern, "target_modules")


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/hostname", "a/../../b"])
def test_evidence_and_attacks_name_files_of_the_run_only(
    name: str, finished: Run, tmp_path: Path
) -> None:
    evidence = {"format": "mergeforget-evidence/1", "files": {name: "ab"}, "recomputed": {},
                "model": {"evaluated": "under"}, "code": {"sha256": ""}, "people": [],
                "verdict": {}}  # fmt: skip
    write_json(tmp_path / "evidence.json", evidence)
    with pytest.raises(InputError, match="outside the run folder"):
        verify_evidence(tmp_path / "evidence.json", finished)


def damage(
    folder: Path, copy: Path, target: str, read: Callable[[Path], Any], count: int
) -> Counted:
    """Fuzz one file of a model folder, the others being as they were."""
    shutil.copytree(folder, copy)

    def parse(path: Path) -> None:
        shutil.copyfile(path, copy / target)
        read(copy)

    return fuzz_target(
        FuzzedParser(parse, target, (folder / target).read_bytes()),
        copy.parent / "f",
        count,
        target,
    )


MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "model.safetensors")  # fmt: skip


@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", MODEL_FILES)
def test_damaged_files_of_a_model_are_input_errors(
    file: str, count: int, tiny_folder: Path, tmp_path: Path
) -> None:
    found = damage(tiny_folder, tmp_path / "m", file, lambda m: load_model(str(m)), count)
    assert found.tried and not found.failures


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "num_layers", "n_layer", "num_local_experts", "n_routed_experts"]
)
def test_a_damaged_number_of_layers_or_experts_is_refused_at_once(
    key: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for damaged in (config | {key: 10**9}, config | {"text_config": {key: 10**9}}):
        (folder / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=f"damaged: {key} is 1000000000"):
            load_model(str(folder))


RUN_FILES = ("scores.jsonl", "history.jsonl", "manifest.json", "search/chosen.json",
             "attacks/relearn.json", "answers/under.jsonl", "answers/base.losses.jsonl",
             "candidates/ties-factors-d0.70/candidate.json")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("file", RUN_FILES)
def test_a_report_of_a_damaged_run_is_written_or_names_the_file(
    file: str, finished: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    run = Run(tmp_path / "run")

    def parse(path: Path) -> None:
        shutil.copyfile(path, run.root / file)
        mf.report(run.root)

    target = FuzzedParser(parse, Path(file).name, (finished.root / file).read_bytes())
    found = fuzz_target(target, tmp_path / "f", 40, file)
    assert found.tried and not found.failures


def test_exporting_again_to_a_link_keeps_the_link_and_the_files_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "result").symlink_to(tmp_path / "real")
    writer = WRITERS["export"]
    writer.write(tmp_path, 1)
    (tmp_path / "real" / "notes.txt").write_text("mine")
    writer.write(tmp_path, 2)
    assert (tmp_path / "result").is_symlink() and writer.version(tmp_path) == 2
    assert (tmp_path / "real" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_two_processes_that_export_at_once_both_succeed(
    tiny_folder: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    save_recipe(change(load_recipe("zjuklab"), model={"name": str(tiny_folder)}), run.recipe)
    save_adapter(run.candidates / "c", scale=0.1)
    write_json(run.candidates / "c" / "candidate.json", {"method": "ties", "density": 0.5})
    words = [sys.executable, "-m", "mergeforget", "export", str(run.root), "--candidate", "c",
             "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    printed = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    hashes = {json.loads(out)["sha256"] for out, _ in printed}
    assert hashes == {read_json(tmp_path / "out" / "export.json")["sha256"]}
    assert not [p.name for p in tmp_path.iterdir() if p.suffix in (".tmp", ".old", ".unchecked")]
