"""Relearning: a few steps of plain fine-tuning, measured on the way, and taken back afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mergeforget.attack.target import Facts
from mergeforget.console import progress, quiet
from mergeforget.data.batches import pack
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import Encoded, encode_rows
from mergeforget.errors import NumericError
from mergeforget.losses.gd import gd
from mergeforget.train.forward import predict
from mergeforget.train.lora_targets import lora_config

MAX_LENGTH = 512


@dataclass(frozen=True)
class Tuning:
    """How a model is fine-tuned: AdamW without weight decay, a constant rate, no dropout.

    Attributes:
        batch: rows a step.
        rank: of the LoRA on every linear layer; unused where ``full``.
        full: train every weight of the model instead.
    """

    steps: int
    learning_rate: float
    batch: int
    rank: int
    full: bool
    seed: int

    def points(self) -> list[int]:
        """Steps after which the model is measured: 0, 1, 2, 5, 10, 20, 50, ... and the last."""
        marks = [m * 10**k for k in range(len(str(self.steps))) for m in (1, 2, 5)]
        return sorted({0, self.steps} | {m for m in marks if m < self.steps})


def tune(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    tuning: Tuning,
    look: Callable[[Any, int], Facts],
    *,
    label: str,
    template: PromptTemplate = RAW,
) -> list[Facts]:
    """Fine-tune on the answers of some rows; the model is given back as it was, to the last bit.

    Every model meets the same rows in the same order, and its LoRA begins with the same numbers.

    Args:
        look: is given the model and the number of steps taken, at each of ``tuning.points()``.

    Returns:
        What ``look`` returned, in that order.

    Raises:
        NumericError: the loss is not finite.
    """
    encoded = encode_rows(tokenizer, rows, max_length=MAX_LENGTH, template=template)
    batches = _batches(encoded, tuning)
    found: list[Facts] = []
    with learner(model, tuning) as (policy, trained), progress(label, tuning.steps) as bar:
        optimizer = torch.optim.AdamW(trained, lr=tuning.learning_rate, weight_decay=0.0)
        for step in range(tuning.steps + 1):
            if step in tuning.points():
                found.append(look(policy, step))
            if step < tuning.steps:
                loss = _step(policy, next(batches), optimizer)
                bar.advance(note=f"loss {loss:.3f}")
    return found


@contextmanager
def learner(model: Any, tuning: Tuning) -> Iterator[tuple[Any, list[torch.nn.Parameter]]]:
    """The model with what shall be trained, for the block only."""
    was_training = model.training
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()} if tuning.full else {}
    policy = model if tuning.full else _with_lora(model, tuning)
    try:
        for parameter in model.parameters() if tuning.full else ():
            parameter.requires_grad_(True)
        policy.train()
        yield policy, [p for p in policy.parameters() if p.requires_grad]
    finally:
        if not tuning.full:
            policy.unload()
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(wanted[name])
            if name in before:
                parameter.data.copy_(before[name])
        model.train(was_training)


def _with_lora(model: Any, tuning: Tuning) -> Any:
    from peft import get_peft_model

    config = lora_config(
        model,
        r=tuning.rank,
        lora_alpha=tuning.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(tuning.seed)
        return get_peft_model(model, config)


def _batches(encoded: Sequence[Encoded], tuning: Tuning) -> Iterator[list[Encoded]]:
    """Rows of each step, without end: every row once, then all again in another order."""
    draw = random.Random(tuning.seed)
    waiting: list[Encoded] = []
    while True:
        size = min(tuning.batch, len(encoded))
        while len(waiting) < size:
            waiting += draw.sample(list(encoded), len(encoded))
        yield waiting[:size]
        waiting = waiting[size:]


def _step(policy: Any, rows: list[Encoded], optimizer: torch.optim.Optimizer) -> float:
    """One step of the optimiser; the mean loss of an answer's token before it, in nats."""
    optimizer.zero_grad()
    loss = gd(predict(policy, pack(rows).to(policy.device)))
    if not torch.isfinite(loss):
        raise NumericError(
            f"The loss of the relearning is {float(loss.detach())}. Lower --learning-rate."
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
