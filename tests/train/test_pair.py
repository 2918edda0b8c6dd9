"""train-pair: two adapters, a run folder, and error messages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mergeforget.adapter import read_adapter
from mergeforget.cli import main
from mergeforget.data.people import make_people
from mergeforget.data.readers import read_rows
from mergeforget.files import read_json, read_jsonl, write_jsonl
from mergeforget.recipe import change, load_recipe
from mergeforget.run import Run
from mergeforget.search.split import group, load_data
from mergeforget.train import memorise, nlls
from mergeforget.train.forward import predict
from mergeforget.train.memorise import memorised_folder

SMALL = [
    "--set", "pair.over.epochs=2", "--set", "pair.under.epochs=1", "--set", "memorise.epochs=1",
    "--set", "pair.over.lora.r=4", "--set", "pair.under.lora.r=4",
    "--set", "pair.over.warmup_epochs=0", "--set", "pair.under.warmup_epochs=0",
    "--set", "pair.over.max_length=400",
]  # fmt: skip


@pytest.fixture
def people(tmp_path: Path) -> dict[str, Path]:
    rows = make_people({"forget": 1, "retain": 1, "holdout": 2}, seed=1, tasks=("Task2",))
    for split, some in rows.items():
        write_jsonl(tmp_path / f"{split}.jsonl", [row.to_dict() for row in some])
    return {split: tmp_path / f"{split}.jsonl" for split in rows}


def command(model: Path, people: dict[str, Path], out: Path, *more: str) -> list[str]:
    files = [word for split in people for word in (f"--{split}", str(people[split]))]
    return ["train-pair", "--model", str(model), *files, "--out", str(out), *SMALL, *more]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch | None = None) -> Result:
    return CliRunner().invoke(main, arguments)


def test_pair_is_trained_from_one_base_into_plain_peft_folders(
    tiny_folder: Path, people: dict[str, Path], tmp_path: Path
) -> None:
    done = run(command(tiny_folder, people, tmp_path / "run", "--json"))
    assert done.exit_code == 0, done.output
    folder = Run(Path(json.loads(done.stdout)["run"]))
    over, under = read_adapter(folder.over), read_adapter(folder.under)
    assert over.base == under.base == str(tiny_folder) and over.deltas.keys() == under.deltas.keys()
    assert all(d.norm() > 0 for a in (over, under) for d in a.deltas.values())
    assert {x["stage"] for x in read_jsonl(folder.history)} == {"over", "under"}
    assert folder.state("over") == folder.state("under") == "done"
    facts = read_json(folder.manifest)["stages"]["data"]
    assert facts["rows"] == {"forget": 6, "retain": 6, "holdout": 12}
    assert len(facts["files"]["forget"]["sha256"]) == 64
    known = read_json(folder.data / "difficulty.json")  # a search matches its splits by it
    data = load_data(folder, load_recipe(folder.recipe).evaluation, None, 0)
    names = {group(row, data.lone())[1] for row in data.nonmembers}
    assert data.difficulty == known and set(known) == names
    assert all(value > 0 for value in known.values())


def test_nonmembers_that_cannot_be_split_do_not_prevent_a_training_of_fixed_length(
    tiny_folder: Path, people: dict[str, Path], tmp_path: Path
) -> None:
    people["holdout"].write_text(people["holdout"].read_text().splitlines()[0] + "\n")
    done = run(command(tiny_folder, people, tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "run" / "data" / "difficulty.json").exists()


@pytest.mark.parametrize("fault", ["truncated", "memory"])
def test_nonmembers_that_cannot_be_measured_do_not_prevent_a_training_of_fixed_length(
    fault: str,
    tiny_folder: Path,
    people: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = read_rows(people["holdout"], split="holdout")
    first = rows[0].subject
    names = {row.subject for row in rows}
    if fault == "truncated":  # no token of the answer is left, so its NLL is 0 / 0
        rows = [
            replace(row, input=row.input + "?" * 500) if row.subject == first else row
            for row in rows
        ]
        names -= {first}
    else:

        def scarce(model: Any, batch: Any) -> Any:
            if batch.rows > 1:
                raise RuntimeError("CUDA out of memory")
            return predict(model, batch)

        monkeypatch.setattr(nlls, "predict", scarce)
    write_jsonl(people["holdout"], [row.to_dict() for row in rows])
    more = ["--set", "pair.over.tokens.truncate=end"]
    done = run(command(tiny_folder, people, tmp_path / "run", *more))
    assert done.exit_code == 0, done.output
    assert set(read_json(tmp_path / "run" / "data" / "difficulty.json")) == names


def test_a_token_of_a_nonmember_that_the_model_lacks_is_refused_by_name(
    tiny_folder: Path, people: dict[str, Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<rare>"])  # without resize_token_embeddings
    tokenizer.save_pretrained(base)
    first, *others = read_rows(people["holdout"], split="holdout")
    rows = [replace(first, output=first.output + " <rare>"), *others]
    write_jsonl(people["holdout"], [row.to_dict() for row in rows])
    done = run(command(base, people, tmp_path / "run"))
    assert done.exit_code == 4 and "has the token id 259" in done.stderr


def test_memorised_model_is_reused(
    tiny_folder: Path, people: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    first = run(command(tiny_folder, people, tmp_path / "a", "--memorise"))
    assert first.exit_code == 0, first.output
    base = Path(Run(tmp_path / "a").base())
    assert base.parent == tmp_path / "cache" / "memorised"
    plain, knows = (load_file(f / "model.safetensors") for f in (tiny_folder, base))
    assert any((plain[k] != knows[k]).any() for k in plain)
    again = run(command(tiny_folder, people, tmp_path / "b", "--memorise"))
    assert again.exit_code == 0 and "reusing the model" in again.stderr
    assert Run(tmp_path / "b").base() == str(base)
    assert read_adapter(tmp_path / "b" / "over").base == str(base)


def test_a_memorised_model_is_cached_by_base_and_dtype(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(base: Path | str = "base", **model: str) -> Path:
        recipe = change(load_recipe("zjuklab"), model={"name": str(base), **model})
        return memorised_folder(recipe, [])

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "base")
    first = folder()
    assert folder(tiny_folder) == folder(tmp_path / "base") == first  # wherever it lies
    half = folder(dtype="bfloat16")
    monkeypatch.setattr(memorise, "dtype_for", lambda spec, device: torch.bfloat16)  # of "auto"
    assert folder() == half != first
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    weights = load_file("base/model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
    assert folder() != first
    revision = tmp_path / "models--a--b" / "snapshots" / (40 * "0")
    shutil.copytree(tiny_folder, revision)
    assert folder(revision) not in (first, folder())


def test_a_killed_pair_resumes_bit_for_bit(
    tiny_folder: Path, people: dict[str, Path], tmp_path: Path
) -> None:
    whole = run(command(tiny_folder, people, tmp_path / "whole"))
    assert whole.exit_code == 0, whole.output
    arguments = [
        sys.executable,
        "-m",
        "mergeforget",
        *command(tiny_folder, people, tmp_path / "cut"),
    ]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    history = tmp_path / "cut" / "history.jsonl"
    while process.poll() is None and len(read_jsonl(history)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = run(command(tiny_folder, people, tmp_path / "cut", "--resume"))
    assert resumed.exit_code == 0, resumed.output
    for side in ("over", "under"):
        one, other = (
            load_file(tmp_path / n / side / "adapter_model.safetensors") for n in ("whole", "cut")
        )
        assert all((one[k] == other[k]).all() for k in one)
    assert read_jsonl(tmp_path / "whole/history.jsonl") == read_jsonl(history)


@pytest.mark.slow  # test_fit.py sends the signal to a training in the process of the test
def test_sigterm_exits_143(tiny_folder: Path, people: dict[str, Path], tmp_path: Path) -> None:
    arguments = [
        sys.executable,
        "-m",
        "mergeforget",
        *command(tiny_folder, people, tmp_path / "r"),
        "--set",
        "pair.over.epochs=400",
    ]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not read_jsonl(tmp_path / "r" / "history.jsonl"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143 and "--resume" in said
    assert "Warning" not in said  # deprecations in other packages do not concern a user


def test_limit_keeps_untouched_documents_as_holdout(tiny_folder: Path, tmp_path: Path) -> None:
    rows = make_people({"forget": 2, "retain": 1}, seed=1, tasks=("Task2",))
    files = {split: tmp_path / f"{split}.jsonl" for split in rows}
    for split, some in rows.items():
        write_jsonl(files[split], [row.to_dict() for row in some])
    done = run(command(tiny_folder, files, tmp_path / "run", "--limit", "6"))
    assert done.exit_code == 0 and "serve as non-members" in done.stderr
    data = {n: read_jsonl(tmp_path / "run/data" / f"{n}.jsonl") for n in ("forget", "holdout")}
    subjects = [{r["id"][:-3] for r in some} for some in data.values()]
    assert all(subjects) and not subjects[0] & subjects[1]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--set", "pair.over.learnin_rate=1"], 3, "Did you mean 'learning_rate'"),
        (["--set", "pair.over.objective.0.loss=npoo"], 3, "Did you mean 'npo'"),
        (["--set", "pair.over.objective.0.betta=1"], 3, "Did you mean 'beta'"),
        (["--set", "pair.over.objective.2.mask=all"], 3, "padding"),
        (["--set", "merge.density=0"], 3, "merge.density"),
        (["--recipe", "zjuklap"], 3, "Did you mean 'zjuklab'"),
        (["--forget", "nowhere.jsonl"], 4, "nowhere.jsonl"),
        (["--set", "pair.under.warmup_epochs=1"], 5, "did not change"),
        (["--model", "no-such-folder/at-all/here"], 4, "no-such-folder"),
    ],
)
def test_invalid_calls_are_explained(
    more: list[str], code: int, says: str, tiny_folder: Path, people: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    done = run(command(tiny_folder, people, tmp_path / "run", *more))
    assert (done.exit_code, says in done.output) == (code, True), done.output
    assert code == 5 or not (tmp_path / "run" / "history.jsonl").exists()


def test_a_run_folder_is_not_overwritten_and_has_one_writer(
    tiny_folder: Path, people: dict[str, Path], tmp_path: Path
) -> None:
    done = run(command(tiny_folder, people, tmp_path / "run"))
    assert done.exit_code == 0
    again = run(command(tiny_folder, people, tmp_path / "run"))
    assert again.exit_code == 4 and "--resume" in again.output
    with Run(tmp_path / "run").lock():
        busy = run(command(tiny_folder, people, tmp_path / "run", "--resume"))
    assert busy.exit_code == 6 and "is in use" in busy.output
    other = run(
        command(tiny_folder, people, tmp_path / "run", "--resume", "--set", "pair.over.epochs=3")
    )
    assert other.exit_code == 3 and "another recipe" in other.output
    assert "pair.over.epochs was 2, now 3" in other.output


def test_a_run_resumes_with_other_paths_of_the_same_files_and_model(
    tiny_folder: Path, people: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command(tiny_folder, people, tmp_path / "run")).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tiny_folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "moved")
    moved = {split: Path("..") / path.name for split, path in people.items()}
    done = run(command(Path("../model"), moved, Path("moved"), "--resume"))
    assert done.exit_code == 0, done.output
    assert Run(Path("moved")).base() == "../model"
    (tmp_path / "retain.jsonl").write_text((tmp_path / "retain.jsonl").read_text() + "\n")
    moved["retain"] = Path("../elsewhere/../retain.jsonl")
    other = run(command(Path("../model"), moved, Path("moved"), "--resume"))
    assert other.exit_code == 3 and "data.retain was ../retain.jsonl, now" in other.output
    monkeypatch.chdir(tmp_path)
    assert Path(Run(Path("elsewhere/moved")).base()).samefile("model")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_without_data_loss(tmp_path: Path) -> None:
    from mergeforget.errors import ResourceError
    from mergeforget.files import append_jsonl

    full = tmp_path / "history.jsonl"
    os.symlink("/dev/full", full)
    with pytest.raises(ResourceError, match="disk is full"):
        append_jsonl(full, [{"step": 1}])
