"""Trainer callbacks: progress bar, snapshots, checkpoints, guards, dual weight, average."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mergeforget.adapter_config import sort_config
from mergeforget.console import Progress, quiet, say
from mergeforget.distributed import gather, in_any, is_main, on_main
from mergeforget.errors import InputError, Interrupted, NumericError
from mergeforget.files import (
    read_json_object,
    replacing,
    sha256,
    sync_file,
    write_json,
)
from mergeforget.fsdp import trained
from mergeforget.parsing import read_text
from mergeforget.recipe import Dual, Term
from mergeforget.train.dataset import PairedRows
from mergeforget.train.samplers import (
    ChunkedSampler,
    Order,
)
from mergeforget.train.trainer import UnlearningTrainer
from mergeforget.train_config import Average


class Epochs(TrainerCallback):
    """Set the epoch of dataset and sampler, also after a resume."""

    def __init__(self, *targets: PairedRows | Order) -> None:
        self.targets = targets

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for one in self.targets:
            one.set_epoch(int((state.epoch or 0.0) + 1e-6))


class StopWhenLearned(TrainerCallback):
    """End the training after an epoch whose mean loss is at most ``bound``, in nats per token."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        passed = max(1, round(state.epoch or 1))
        losses = [line["loss"] for line in state.log_history if "loss" in line]
        recent = losses[-max(1, round(state.global_step / passed)) :]
        if sum(recent) / len(recent) <= self.bound:
            control.should_training_stop = True


class FreshOptimizer(TrainerCallback):
    """Reset the optimiser's state at the beginning of each chunk."""

    def __init__(self, order: ChunkedSampler) -> None:
        self.beginnings = order.beginnings

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step in self.beginnings:
            more["optimizer"].state.clear()


class ProgressBar(TrainerCallback):
    """Show steps done, time left, and the loss or what a controller has measured.

    Args:
        at_most: The training may end before its last step.
    """

    def __init__(self, label: str, controller: Any = None, at_most: bool = False) -> None:
        self.label, self.controller = label, controller
        self.at_most = at_most or controller is not None
        self.bar: Progress | None = None
        self.loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = Progress(
            self.label, state.max_steps, done=state.global_step, at_most=self.at_most
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)
        if self.bar is not None and state.global_step > self.bar.done:
            note = getattr(self.controller, "note", "") or f"loss {self.loss:.3g}"
            self.bar.advance(state.global_step - self.bar.done, note)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class Snapshots(TrainerCallback):
    """Save the adapter at evenly spaced steps, except the last, which is the result."""

    def __init__(self, count: int, save: Callable[[int], None]) -> None:
        self.count, self.save = count, save

    def steps(self, total: int) -> set[int]:
        """Save at ``count`` evenly spaced steps before the last."""
        return {max(1, round(total * i / (self.count + 1))) for i in range(1, self.count + 1)}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self.steps(state.max_steps) - {state.max_steps}:
            self.save(state.global_step)


class Checkpoints(TrainerCallback):
    """Save a checkpoint every ``seconds``, and when SIGINT or SIGTERM asks the process to stop.

    The interval is longer if a checkpoint takes long to write: ``OVERHEAD`` bounds the share of
    time spent on checkpoints. The history is flushed to the disk with every checkpoint.

    A second signal ends the process at once. Each complete checkpoint has a file with the hashes
    of its files, which ``last_checkpoint`` checks.
    """

    OVERHEAD = 0.05

    def __init__(self, seconds: float, history: Path | None = None) -> None:
        self.seconds, self.history = seconds, history
        self.last = self.begun = time.monotonic()
        self.took = 0.0  # seconds that the last checkpoint took
        self.signum = 0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with suppress(ValueError):  # outside the main thread, signals belong to the caller
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._stop)

    def _stop(self, signum: int, *_: Any) -> None:
        self.signum = signum
        self.restore()

    def restore(self) -> None:
        """Restore the signal handlers that were active before the training."""
        while self._before:
            signal.signal(*self._before.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = time.monotonic()
        interval = max(self.seconds, self.took / self.OVERHEAD)
        due = self.begun - self.last >= interval and state.global_step < state.max_steps
        self.signum = max(gather(self.signum))
        if self.signum or in_any(due):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        in_any(False)  # wait until every process has written its files
        if is_main():
            self._sync_history()  # first, so that a sealed checkpoint has its lines of the history
            seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.last = time.monotonic()
        self.took = self.last - self.begun
        if self.signum:
            raise Interrupted(
                f"Interrupted: step {state.global_step} of {state.max_steps} is saved. Run the "
                "same command to continue, with --resume for train and train-pair.",
                self.signum,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.restore()
        self._sync_history()

    def _sync_history(self) -> None:
        if self.history is not None and is_main() and self.history.exists():
            sync_file(self.history)


class Guard(TrainerCallback):
    """Raise NumericError if the first step does not change the trained weights.

    Only the entry with the largest gradient of each tensor is compared: if it does not change, no
    other does. A copy of all weights would double the memory of full fine-tuning.
    """

    def __init__(self) -> None:
        self.before: list[torch.Tensor] | None = None
        self.places: list[torch.Tensor] = []
        self.steps = 0  # steps of this process; a resumed training may have none left

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        self.steps += 1
        rate = more["optimizer"].param_groups[0]["lr"] if "optimizer" in more else 1.0
        if self.before is None and rate > 0:  # a warm-up starts at rate 0, which changes nothing
            self.places = [_largest(p) for p in _trained(model)]
            self.before = self._entries(model)

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if self.before is None or not self.places:
            return
        pairs = list(zip(self.before, self._entries(model), strict=True))
        self.places = []  # compare only once
        moved = bool(pairs) and bool(torch.cat([old != new for old, new in pairs]).any())
        if not in_any(moved):
            raise NumericError(
                "The first step did not change the adapter: every gradient is zero. Check that "
                "the objective's weights are not 0, that target_modules matches layers of this "
                "model, and that the learning rate is not too small for its dtype."
            )

    def _entries(self, model: Any) -> list[torch.Tensor]:
        pairs = zip(self.places, _trained(model), strict=True)
        parts = [(i, _whole(p.detach()).flatten()) for i, p in pairs]
        return [part.index_select(0, i.reshape(1)) for i, part in parts if part.numel()]

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.before is None and self.steps:
            raise NumericError(
                f"The adapter did not change: the learning rate was 0 in all {self.steps} steps, "
                "since the warm-up is as long as the training. Lower warmup_epochs, or train for "
                "more epochs."
            )


SEAL = "complete.json"  # hashes of a checkpoint's files, written last


def seal_checkpoint(folder: Path) -> None:
    """Flush a finished checkpoint to the disk and record the hashes of its files."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    write_json(folder / SEAL, hashes)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest intact checkpoint; remove damaged ones with a message."""
    checkpoints = []
    for path in folder.glob("checkpoint-*"):
        step = path.name.split("-")[1]
        if step.isdecimal():
            checkpoints.append((int(step), path))
    for number, path in sorted(checkpoints, reverse=True):
        damage = _damage(path)
        if not damage:
            return path
        say(f"Warning: the checkpoint of step {number} is not used: {damage}.")
        shutil.rmtree(path, ignore_errors=True)
    return None


def _damage(checkpoint: Path) -> str:
    """Describe the damage of a checkpoint; empty if it is intact."""
    try:
        # the Trainer writes its state last; unlike our files, it may contain NaN
        json.loads(read_text(checkpoint / "trainer_state.json"))
        seal = checkpoint / SEAL
        if seal.exists():
            for name, expected in read_json_object(seal).items():
                if not (checkpoint / name).is_file():
                    return f"{name} is missing"
                if sha256(checkpoint / name) != expected:
                    return f"{name} is damaged"
        else:  # killed before the hashes were written, or written by an earlier version
            for path in checkpoint.iterdir():
                if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
                    return f"{path.name} is damaged"
                if path.is_file() and path.stat().st_size == 0:
                    return f"{path.name} is empty"
    except (InputError, OSError, ValueError) as error:
        return str(error).rstrip(".")
    return ""


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or this rank's shard of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _largest(parameter: torch.Tensor) -> torch.Tensor:
    """Return the flat index of the entry with the largest gradient."""
    gradient = parameter.grad
    if gradient is None or not _whole(gradient).numel():
        return torch.zeros((), dtype=torch.long, device=parameter.device)
    return _whole(gradient).abs().flatten().argmax()


def _trained(model: Any) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


class DualWeight(TrainerCallback, ExportableState):
    """Update the weight of a term after every optimiser step, by projected dual ascent.

    ``weight <- max(0, weight + step * (value - limit))``, where ``value`` is the unweighted term of
    that step. The weight is part of each checkpoint, so a resumed
    training continues bit for bit. The history records the weight used by each step.

    Args:
        term: Label of the term, for example ``gd_retain``.
        limit: Value, in nats, that the term should not exceed.
        step: Step size of the dual ascent, in weight per nat.
        weight: The recipe's weight, used until the first update.
        warmup_steps: Optimiser steps before the first one that is followed by an update.

    Source: Entesari et al. 2025, arXiv:2506.05314, algorithm 1; the warm-up is that of its code.
    """

    def __init__(
        self, term: str, limit: float, step: float, weight: float, warmup_steps: int = 0
    ) -> None:
        self.term, self.limit, self.step, self.warmup_steps = term, limit, step, warmup_steps
        self.start = weight
        self.weight = weight
        self.trainer: UnlearningTrainer | None = None

    @classmethod
    def of(cls, dual: Dual, terms: Sequence[Term], epoch_steps: int) -> DualWeight:
        """Create the callback for the section ``dual`` of a recipe.

        Args:
            epoch_steps: Optimiser steps of one pass over the forget set.
        """
        (weight,) = (term.weight for term in terms if term.label == dual.term)
        warmup_steps = round(dual.warmup_epochs * epoch_steps)
        return cls(dual.term, dual.limit, dual.step, weight, warmup_steps)

    def state(self) -> dict[str, Any]:
        """Return the arguments and the current weight, as stored in a checkpoint."""
        args = {"term": self.term, "limit": self.limit, "step": self.step, "weight": self.start,
                "warmup_steps": self.warmup_steps}  # fmt: skip
        return {"args": args, "attributes": {"weight": self.weight}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, dict):  # from the checkpoint that the training resumes from
            self.weight = float(saved["attributes"]["weight"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        terms = self.trainer.terms
        self.trainer.terms = [
            term.model_copy(update={"weight": self.weight}) if term.label == self.term else term
            for term in terms
        ]
        self.trainer.note(dual_weight=self.weight)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        if state.global_step <= self.warmup_steps:
            return
        value = self.trainer.value_of(self.term)
        if value is not None:  # None in a step that has only the other set
            self.weight = max(0.0, self.weight + self.step * (value - self.limit))


class WeightAverage(TrainerCallback):
    """Replace the weights at the end of a training by their mean over some steps.

    The sum so far is part of each checkpoint.
    """

    FILE = "average.safetensors"

    def __init__(self, average: Average) -> None:
        self.average = average
        self.total: list[torch.Tensor] = []  # of the weights that count, in float32
        self.steps = 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE
        if path.exists():
            found = load_file(path)
            self.steps = int(found.pop("steps"))
            places = zip(range(len(found)), _trained(model), strict=True)
            self.total = [found[str(i)].to(p.device) for i, p in places]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        after = state.global_step - max(1, round(self.average.start * state.max_steps))
        if after < 0 or after % self.average.every:
            return
        weights = [p.detach().float() for p in _trained(model)]
        self.total = self.total or [torch.zeros_like(w) for w in weights]
        for total, weight in zip(self.total, weights, strict=True):
            total += weight
        self.steps += 1

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.total and is_main():
            tensors = {str(i): total.contiguous() for i, total in enumerate(self.total)}
            tensors["steps"] = torch.tensor(self.steps)
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file(tensors, folder / self.FILE)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        with torch.no_grad():
            for parameter, total in zip(_trained(model), self.total, strict=True):
                parameter.copy_(total / self.steps)


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter of a PEFT model as a plain PEFT folder, atomically."""
    weights = trained(model)
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise NumericError(
                f"{name} is not finite after training. Lower the learning rate, or stop earlier."
            )

    def save() -> None:
        with replacing(folder) as temporary, quiet():
            model.save_pretrained(temporary, state_dict=weights)
            sort_config(temporary)

    on_main(save)
