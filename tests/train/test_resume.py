"""Killed and resumed, every way of training ends where it would have ended, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl
from mergeforget.run import Run
from mergeforget.train import callbacks, reference
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train_config import AutoRate, Average, Dual, Lora, Term, Training, Watch

SETS = {
    name: [Row(f"{name}{i}-qa0", f"Who is {i * 'x'}?", f"Ada {i}.", "", name) for i in range(size)]
    for name, size in (("forget", 6), ("retain", 5), ("holdout", 4))
}
NPO, GD, GA = (Term(loss=n, on=s) for n, s in  # type: ignore[arg-type]
               (("npo", "forget"), ("gd", "retain"), ("ga", "forget")))  # fmt: skip
KL = Term(loss="kl", on="retain")
STEEPEST: dict[str, Any] = {
    "objective": [GA, GD], "direction": "ngdiff", "optimizer": "sgd", "schedule": "constant",
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "alternating": {"batches": "alternating"},
    "chunks": {"chunk_rows": 2, "retain_per_forget": 2},
    "ngdiff": STEEPEST,
    "auto-rate": STEEPEST | {"auto_rate": AutoRate(every=2)},
    "auto-rate-fit": STEEPEST | {"auto_rate": AutoRate(method="fit", every=3), "clip_each": 1.0},
    "watch": {"watch": Watch(every=2, sample=3, best_by="retain_nll"), "learning_rate": 0.1},
    "gru": {"direction": "gru", "objective": [GA, GD]},
    "sam": {"direction": "sam"},
    "average": {"average": Average(start=0.3, every=1)},
    "dual": {"dual": Dual(limit=1.0, step=0.5)},
    "checkpointing": {"gradient_checkpointing": True},
}
SLOW = ("ngdiff", "auto-rate", "sam", "checkpointing")  # save no state that another way does not


class Killed(Exception):
    """End the process as SIGKILL does: the memory is lost, and nothing more is written."""


@pytest.fixture
def train(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> Callable[..., dict[str, torch.Tensor]]:
    def run(name: str, resume: bool = False, **more: Any) -> dict[str, torch.Tensor]:
        settings: dict[str, Any] = {
            "objective": [NPO, GD], "epochs": 2, "batch_size": 1, "gradient_accumulation": 2,
            "learning_rate": 1e-2, "snapshots": 2, "lora": Lora(r=2, lora_dropout=0.1),
        }  # fmt: skip
        job = TrainingJob(Run(tmp_path / name), "over", resume, checkpoint_seconds=1e9)
        folder = train_adapter(make_model(), tiny_tokenizer, SETS, Training(**settings | more), job)
        return load_file(folder / "adapter_model.safetensors")

    return run


def cut(monkeypatch: pytest.MonkeyPatch, *saved: int, killed: int) -> None:
    """Save a checkpoint at each of some steps, and die at a later one."""

    def step(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step in saved
        if state.global_step == killed:
            raise Killed

    monkeypatch.setattr(callbacks.Checkpoints, "on_step_end", step)


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow if way in SLOW else ()) for way in WAYS]
)
def test_a_resumed_training_is_bit_identical(
    way: str, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole", **WAYS[way])
    with monkeypatch.context() as patched:
        cut(patched, 2, killed=5)
        with pytest.raises(Killed):
            train("cut", **WAYS[way])
    torch.rand(100)  # other work draws from the global generator in between
    again = train("cut", resume=True, **WAYS[way])
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    for name in ("history.jsonl", "proxies.jsonl"):
        one, other = (read_jsonl(tmp_path / run / name) for run in ("whole", "cut"))
        assert one == other and (one or name != "history.jsonl")


def test_a_training_killed_before_its_first_checkpoint_starts_again(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbing = {"objective": [GA], "learning_rate": 0.05} | {"watch": WAYS["watch"]["watch"]}
    whole = train("whole", **climbing)
    with monkeypatch.context() as patched:
        cut(patched, killed=3)
        with pytest.raises(Killed):
            train("cut", **climbing)
    again = train("cut", resume=True, **climbing)
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    for name in ("history.jsonl", "proxies.jsonl"):
        one, other = (read_jsonl(tmp_path / run / name) for run in ("whole", "cut"))
        assert one and one == other


def test_reference_outputs_are_computed_once(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = reference._compute
    computed = []

    def counted(*args: Any) -> Any:
        computed.append((args[0], len(args[2])))
        return compute(*args)

    monkeypatch.setattr(reference, "_compute", counted)
    with monkeypatch.context() as patched:
        cut(patched, 2, killed=3)
        with pytest.raises(Killed):
            train("run", objective=[NPO, KL])
    files = sorted((tmp_path / "run" / "reference").iterdir())
    before = [path.read_bytes() for path in files]
    train("run", resume=True, objective=[NPO, KL])
    assert computed == [("logps", len(SETS["forget"])), ("hidden", len(SETS["retain"]))]
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    ("name", "seal"),
    [("optimizer.pt", True), ("adapter_model.safetensors", True), ("rng_state.pth", False)],
)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    name: str,
    seal: bool,
    train: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"epochs": 1, "snapshots": 1}
    whole = train("whole", **settings)
    with monkeypatch.context() as patched:
        cut(patched, 1, 2, killed=3)
        with pytest.raises(Killed):
            train("cut", **settings)
    newest = tmp_path / "cut" / "checkpoints" / "over" / "checkpoint-2"
    content = (newest / name).read_bytes()
    if seal:  # one changed bit
        middle = len(content) // 2
        (newest / name).write_bytes(
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
    else:
        (newest / callbacks.SEAL).unlink()
        (newest / name).write_bytes(b"")
    again = train("cut", resume=True, **settings)
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    said = capsys.readouterr().err
    assert f"checkpoint of step 2 is not used: {name}" in said
    assert "resuming from checkpoint 1" in said
