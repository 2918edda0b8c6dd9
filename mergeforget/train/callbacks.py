"""What happens between the steps: progress, snapshots, checkpoints, and the guard."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from mergeforget.console import Progress
from mergeforget.distributed import in_any
from mergeforget.errors import Interrupted, NumericError
from mergeforget.train.dataset import PairedRows
from mergeforget.train.samplers import ChunkedSampler, Order


class Epochs(TrainerCallback):
    """Tells the rows which epoch it is, so that the partners change; also after a resume."""

    def __init__(self, *told: PairedRows | Order) -> None:
        self.told = told

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for one in self.told:
            one.set_epoch(int((state.epoch or 0.0) + 1e-6))


class FreshOptimizer(TrainerCallback):
    """Empties the optimiser's memory where a chunk begins."""

    def __init__(self, order: ChunkedSampler) -> None:
        self.beginnings = order.beginnings

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step in self.beginnings:
            more["optimizer"].state.clear()


class Bar(TrainerCallback):
    """Steps done, time left, loss."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Progress | None = None
        self.loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = Progress(self.label, state.max_steps, done=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)
        if self.bar is not None and state.global_step > self.bar.done:
            self.bar.advance(state.global_step - self.bar.done, f"loss {self.loss:.3g}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class Snapshots(TrainerCallback):
    """Saves the adapter at evenly spaced steps, the last one left out: that is the result."""

    def __init__(self, count: int, save: Callable[[int], None]) -> None:
        self.count, self.save = count, save

    def steps(self, total: int) -> set[int]:
        """``count`` steps between the first and the last but one."""
        return {max(1, round(total * i / (self.count + 1))) for i in range(1, self.count + 1)}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self.steps(state.max_steps) - {state.max_steps}:
            self.save(state.global_step)


class Checkpoints(TrainerCallback):
    """Saves a checkpoint now and then by the clock, and when the process is told to end.

    A short training is checkpointed often and a long one does not spend its time on it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()
        self.told = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        try:
            signal.signal(signal.SIGTERM, self._tell)
        except ValueError:  # not the main thread: whoever owns the process handles its signals
            pass

    def _tell(self, *_: Any) -> None:
        self.told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = time.monotonic() - self.last >= self.seconds and state.global_step < state.max_steps
        self.told = in_any(self.told)
        if self.told or in_any(due):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()
        if self.told:
            raise Interrupted(
                f"Told to end: step {state.global_step} of {state.max_steps} is saved. Go on with "
                "the same command and --resume."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        except ValueError:
            pass


class Guard(TrainerCallback):
    """Stops when the trained weights do not move in the first step."""

    def __init__(self) -> None:
        self.before: list[torch.Tensor] | None = None
        self.steps = 0  # taken here; a resumed training may have none left

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        self.steps += 1
        rate = more["optimizer"].param_groups[0]["lr"] if "optimizer" in more else 1.0
        if self.before is None and rate > 0:  # a warm-up begins at 0, where nothing may move
            self.before = [p.detach().clone() for p in _trained(model)]

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if not self.before:
            return
        pairs = list(zip(self.before, _trained(model), strict=True))
        self.before = []  # looked at once
        if not any((old != new).any() for old, new in pairs):
            raise NumericError(
                "The adapter did not move in its first step: every gradient is zero. Check that "
                "the objective's weights are not 0, that target_modules matches layers of this "
                "model, and that the learning rate is not too small for its dtype."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.before is None and self.steps:
            raise NumericError(
                f"The adapter did not move: the learning rate was 0 in all {self.steps} steps, "
                "since the warm-up is as long as the training. Lower warmup_epochs, or train for "
                "more epochs."
            )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; cut-off ones are removed."""
    import json
    import shutil

    found = []
    for path in folder.glob("checkpoint-*"):
        try:  # the state is the last file that is written
            json.loads((path / "trainer_state.json").read_text())
            found.append((int(path.name.split("-")[1]), path))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    return max(found)[1] if found else None


def _trained(model: Any) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.requires_grad]
