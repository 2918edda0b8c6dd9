"""Train the two adapters of a pair at the same time: rows of both share each forward pass.

A small batch does not fill a GPU, so a pass over the rows of two trainings takes little longer
than a pass over those of one. Each training keeps its own trainer, optimiser, schedule, random
numbers and checkpoints; only forward and backward passes are joined, so the result is that of one
training after the other up to rounding.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.state import GradientState
from torch import Tensor

from mergeforget.console import quiet, say
from mergeforget.distributed import world_size
from mergeforget.errors import Interrupted, NumericError, RecipeError
from mergeforget.recipe import Recipe
from mergeforget.train.dataset import Share
from mergeforget.train.forward import predict_sets
from mergeforget.train.joined_adapters import joined_adapters, why_apart
from mergeforget.train.precision import tensor_cores

if TYPE_CHECKING:
    from mergeforget.train.callbacks import Checkpoints
    from mergeforget.train.trainer import UnlearningTrainer


def trains_together(recipe: Recipe, device: torch.device) -> bool:
    """Return whether a recipe trains its pair together on a device.

    With ``auto``, it does on a GPU, unless a setting or a launch with several processes forbids it.

    Raises:
        RecipeError: ``pair.together`` is true, and the base is quantised or the launch has several
            processes.
    """
    assert recipe.pair is not None
    reason = recipe.pair.apart_because()
    if recipe.model.quantization:
        reason = "the base is quantised"
    if world_size() > 1:
        reason = f"the launch has {world_size()} processes"
    if recipe.pair.together == "auto":
        return device.type == "cuda" and not reason
    if recipe.pair.together and reason:
        raise RecipeError(f"pair.together is true, but {reason}. Set it to auto or false.")
    return recipe.pair.together


@dataclass
class _Pass:
    """A pass that a training requests, and its loss once it is computed."""

    trainer: UnlearningTrainer
    model: Any
    share: Share
    loss: Tensor | None = None


class Partners:
    """Two trainings that take turns and join their passes.

    Each training runs in a thread, and one thread runs at a time: a training that needs a pass
    waits until the other needs one, too, or has finished. Global random number generators and the
    state of accelerate belong to the training whose turn it is.

    Args:
        stages: Names of the two trainings; passes run through the model of the first.
        required: Raise an error if passes cannot be joined, instead of training one adapter after
            the other with a message.
    """

    def __init__(self, stages: tuple[str, str], *, required: bool) -> None:
        self.stages, self.required = stages, required
        self.passes = 0  # joined passes
        self.joined = True
        self._checked = False
        self._turn = threading.Condition()
        self._running = stages[0]
        self._unfinished = list(stages)
        self._waiting: dict[str, _Pass] = {}
        self._states: dict[str, _GlobalState] = {}
        self._checkpoints: list[Checkpoints] = []
        self._signum = 0
        self._errors: list[BaseException] = []

    def run(self, trainings: Mapping[str, Callable[[], None]]) -> None:
        """Run both trainings to their ends.

        If one fails or the process is asked to stop, the other saves a checkpoint and stops.

        Raises:
            Interrupted: SIGINT or SIGTERM was received; checkpoints are saved.
            NumericError: A value is not finite.
            Others as the trainings.
        """
        self._states = {stage: _GlobalState.current() for stage in self.stages}
        threads = [
            threading.Thread(
                target=copy_context().run, args=(self._thread, s, trainings[s]), daemon=True
            )
            for s in self.stages
        ]
        with quiet(), tensor_cores(), self._handling_signals():
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)  # signal handlers run in between
        if len(self._errors) == 2 and all(isinstance(e, NumericError) for e in self._errors):
            raise NumericError(
                f"{self._errors[0]} A value that is not finite reaches both trainings of a joint "
                "pass. To see which one diverges, start again with --set pair.together=false."
            ) from self._errors[0]
        for error in sorted(self._errors, key=lambda e: isinstance(e, Interrupted)):
            raise error

    def register(self, checkpoints: Checkpoints) -> None:
        """Let a training's checkpoint callback stop it when the other fails or a signal arrives."""
        self._checkpoints.append(checkpoints)
        checkpoints.signum = self._signum

    def separate(self, reason: str) -> None:
        """Join no further passes: train one adapter after the other.

        Raises:
            RecipeError: The recipe requires joint passes.
        """
        if self.required:
            raise RecipeError(f"pair.together is true, but {reason}. Set it to auto or false.")
        if self.joined:
            say(f"over and under are trained one after the other: {reason}.")
        self.joined = False

    def step(self, trainer: UnlearningTrainer, model: Any, share: Share) -> Tensor:
        """Run forward and backward of a share, with the other training's next one if possible.

        Returns:
            The loss of the share, detached.
        """
        request = _Pass(trainer, model, share)
        stage = self._running
        other_stage = self.stages[1 - self.stages.index(stage)]
        if self.joined and other_stage in self._unfinished and other_stage not in self._waiting:
            self._waiting[stage] = request
            self._hand_over(stage, other_stage)
            self._waiting.pop(stage, None)
            if request.loss is not None:
                return request.loss
        partner = self._waiting.get(other_stage) if self.joined else None
        if partner is not None and self._fit(stage, request, partner):
            self._join({stage: request, other_stage: partner})
            del self._waiting[other_stage]
        else:
            request.loss = trainer.separate_step(model, share)
        assert request.loss is not None
        return request.loss

    def _fit(self, stage: str, request: _Pass, other_request: _Pass) -> bool:
        """Return whether the models can share passes; checked at the first one."""
        if not self._checked:
            host, guest = (
                (request, other_request) if stage == self.stages[0] else (other_request, request)
            )
            reason = why_apart(host.model, guest.model)
            if reason:
                self.separate(reason)
            self._checked = True
        return self.joined

    def _join(self, both: Mapping[str, _Pass]) -> None:
        """Run one forward and one backward pass for both, and set their losses."""
        prepared, batches, totals = {}, {}, {}
        for stage in self.stages:
            one = both[stage]
            one.model.train()
            share = one.trainer._prepare_inputs(one.share)
            with self._random_of(stage):
                prepared[stage] = terms, reads, _ = one.trainer.before(one.model, share)
            for name in reads:
                batches[f"{stage} {name}"] = share.batches[name]
                totals[f"{stage} {name}"] = share.totals(name)
        cut = sum(b.tokens for name, b in batches.items() if name.startswith(f"{self.stages[0]} "))
        host, guest = (both[stage] for stage in self.stages)
        layers = {n for _, reads, _ in prepared.values() for r in reads.values() for n in r.layers}
        with joined_adapters(host.model, guest.model, cut, self._random_of, self.stages):
            outputs = predict_sets(
                host.model, batches, totals, head=host.trainer.reference.head,
                layers=sorted(layers), together=sum(b.tokens for b in batches.values()),
                prefixes=False,
            )  # fmt: skip
        losses = []
        for stage, (terms, reads, before) in prepared.items():
            one, policy = both[stage], {name: outputs[f"{stage} {name}"] for name in reads}
            with self._random_of(stage):
                losses.append(one.trainer.loss_from(one.share, terms, before, policy))
        host.trainer.accelerator.backward(sum(losses))
        for stage, loss in zip(prepared, losses, strict=True):
            both[stage].loss = loss.detach()
        self.passes += 1

    @contextmanager
    def _random_of(self, stage: str) -> Iterator[None]:
        """Draw from torch's generators of a training inside the block."""
        if stage == self._running:
            yield
            return
        previous = _torch_state()
        _set_torch_state(self._states[stage].torch)
        try:
            yield
        finally:
            self._states[stage].torch = _torch_state()
            _set_torch_state(previous)

    def _hand_over(self, stage: str, other_stage: str) -> None:
        """Let the other training run until it hands over or ends."""
        self._states[stage] = _GlobalState.current()
        with self._turn:
            self._running = other_stage
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._running == stage)
        self._states[stage].restore()

    def _thread(self, stage: str, train: Callable[[], None]) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._running == stage)
        self._states[stage].restore()
        try:
            if not self._signum:
                train()
        except BaseException as error:
            self._errors.append(error)
            self._stop(signal.SIGTERM)
        finally:
            self._unfinished.remove(stage)
            with self._turn:
                self._running = next(iter(self._unfinished), "")
                self._turn.notify_all()

    def _stop(self, signum: int, *_: Any) -> None:
        """Make both trainings save a checkpoint after their steps and stop."""
        self._signum = signum
        for one in self._checkpoints:
            one.signum = signum

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        before: dict[int, Any] = {}

        def restore() -> None:
            while before:
                signal.signal(*before.popitem())

        def stop(signum: int, *_: Any) -> None:
            self._stop(signum)
            restore()  # a second signal ends the process at once

        with suppress(ValueError):  # outside the main thread, signals belong to the caller
            for signum in (signal.SIGINT, signal.SIGTERM):
                before[signum] = signal.signal(signum, stop)
        try:
            yield
        finally:
            restore()


@dataclass
class _GlobalState:
    """State of the process that belongs to the training whose turn it is."""

    python: Any
    numpy: Any
    torch: tuple[Tensor, ...]
    gradients: dict[str, Any]

    @classmethod
    def current(cls) -> _GlobalState:
        gradients = dict(vars(GradientState()))
        return cls(random.getstate(), np.random.get_state(), _torch_state(), gradients)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        _set_torch_state(self.torch)
        shared = vars(GradientState())
        shared.clear()
        shared.update(self.gradients)


def _torch_state() -> tuple[Tensor, ...]:
    on_gpu = (torch.cuda.get_rng_state(),) if torch.cuda.is_initialized() else ()
    return torch.get_rng_state(), *on_gpu


def _set_torch_state(state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
