"""train: one adapter, or the model itself, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mergeforget.adapter import read_adapter
from mergeforget.cli import main
from mergeforget.data.people import make_people
from mergeforget.files import read_jsonl, write_jsonl
from mergeforget.run import Run


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rows = make_people({"forget": 1, "retain": 1, "holdout": 1}, seed=1, tasks=("Task2",))
    words = []
    for split, some in rows.items():
        write_jsonl(tmp_path / f"{split}.jsonl", [row.to_dict() for row in some])
        words += [f"--{split}", str(tmp_path / f"{split}.jsonl")]
    return words


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_one_adapter_is_trained_with_early_stopping(
    tiny_folder: Path, files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["--set", "train.epochs=1", "--set", "train.watch={every: 1, sample: 2}"]
    words = ["train", "--recipe", "graddiff", "--model", str(tiny_folder), "--out", str(out)]
    done = run(*words, *files, *settings)
    assert done.exit_code == 0, done.output
    assert any(d.norm() > 0 for d in read_adapter(out / "adapter").deltas.values())
    assert {x["stage"] for x in read_jsonl(out / "history.jsonl")} == {"adapter"}
    assert all("mia_auc" in x for x in read_jsonl(out / "proxies.jsonl"))
    again = run(*words, *files, *settings, "--resume")
    assert again.exit_code == 0 and "done already" in again.stderr
    assert Run(out).state("adapter") == "done"


def test_full_training_writes_a_model(tiny_folder: Path, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        "train", "--recipe", "graddiff", "--model", str(tiny_folder), "--out", str(out), *files,
        "--set", "train.epochs=1", "--set", "train.full={last_layers: 1}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (out / "model" / "model.safetensors").exists()


def test_a_recipe_for_one_adapter_cannot_train_a_pair(
    tiny_folder: Path, files: list[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    done = run("train-pair", "--recipe", "npo", "--model", str(tiny_folder), "--out", out, *files)
    assert done.exit_code == 3 and "over: npo, under: zjuklab" in done.stderr


def test_tensorboard_gets_every_term(tiny_folder: Path, files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    done = run(
        "train", "--recipe", "graddiff", "--model", str(tiny_folder), "--out", str(out), *files,
        "--set", "train.epochs=1", "--set", "train.report_to=[tensorboard]",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    seen = EventAccumulator(str(out / "tensorboard" / "adapter")).Reload()
    lines = read_jsonl(out / "history.jsonl")
    for label in ("ga_forget", "gd_retain"):
        shown = [event.value for event in seen.Scalars(f"train/term/{label}")]
        assert shown == pytest.approx([line["terms"][label] for line in lines])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_reporters_get_every_term_without_a_network(
    name: str, tiny_folder: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(kept))
    monkeypatch.setenv("TRACKIO_DIR", str(kept))  # read when it is imported
    pytest.importorskip(name)
    done = run(
        "train", "--recipe", "graddiff", "--model", str(tiny_folder),
        "--out", str(tmp_path / "run"), *files,
        "--set", "train.epochs=1", "--set", f"train.report_to=[{name}]",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    written = b"".join(file.read_bytes() for file in kept.rglob("*") if file.is_file())
    assert b"term/ga_forget" in written and b"term/gd_retain" in written, sorted(kept.rglob("*"))


def test_a_reporter_that_is_not_installed_is_named(
    tiny_folder: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergeforget.train.objective.find_spec", lambda name: None)
    words = ["train", "--recipe", "npo", "--model", str(tiny_folder), "--out", str(tmp_path / "r")]
    done = run(*words, *files, "--set", "train.report_to=[wandb]")
    assert done.exit_code == 3 and "pip install wandb" in done.stderr
    assert not (tmp_path / "r" / "history.jsonl").exists()
