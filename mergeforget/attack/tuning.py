"""Relearning: a few steps of plain fine-tuning, measured on the way, and taken back afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergeforget.attack.target import Facts
from mergeforget.console import progress, quiet
from mergeforget.data.batches import pack
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import Encoded, encode_rows
from mergeforget.errors import NumericError
from mergeforget.files import whole
from mergeforget.losses.gd import gd
from mergeforget.train.forward import predict
from mergeforget.train.lora_targets import lora_config

MAX_LENGTH = 512
CONTROL_STEPS = 100
UNRELATED = (  # general text about nobody
    (
        "Why do leaves change colour in autumn?",
        "Trees stop making chlorophyll, and the yellow and "
        "orange pigments that were hidden by it become visible.",
    ),
    ("How is bread made?", "Flour, water, salt and yeast are kneaded, left to rise, and baked."),
    ("What causes tides?", "The gravity of the Moon and of the Sun pulls on the oceans."),
    (
        "How does a bicycle stay upright?",
        "Steering into a lean moves the wheels back under the centre of mass.",
    ),
    ("What is a prime number?", "A whole number above one with no divisors but one and itself."),
    ("How do bees make honey?", "They collect nectar, pass it on, and let its water evaporate."),
    ("Why is the sky blue?", "Air scatters short wavelengths of sunlight more than long ones."),
    ("What is an algorithm?", "A finite list of instructions that solves a kind of problem."),
    ("How does soap clean?", "One end of its molecules binds to fat, the other end to water."),
    ("What is compost?", "Plant waste that bacteria and fungi have broken down into dark soil."),
    ("How do vaccines work?", "They show the immune system a harmless part of a pathogen."),
    ("What is inflation?", "A general rise of prices, so that money buys less than before."),
)


def unrelated_rows() -> list[Row]:
    """Built-in questions and answers of general knowledge, for relearning on unrelated text."""
    return [Row(f"unrelated{i}", q, a, split="unrelated") for i, (q, a) in enumerate(UNRELATED)]


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
        """Steps after which the model is measured: 0, 1, 2, 3, 5, 7, 10, 15, 20, 30, ... to the
        last; they grow by about 1.4, so that no short-lived recovery is missed."""
        marks = [round(m * 10**k) for k in range(len(str(self.steps)))
                 for m in (1, 1.5, 2, 3, 4, 5, 7)]  # fmt: skip
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


def train_control(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: Path,
    *,
    template: PromptTemplate = RAW,
    seed: int = 0,
) -> Path:
    """Train a LoRA on the retain rows alone: a model that never saw the forget rows.

    ``CONTROL_STEPS`` steps of relearning's optimiser on a model from before the data was learned.
    The control then knows the style of the rows, so that only what the forget rows say is left to
    set a model apart that knows them.

    Args:
        model: restored afterwards.
        folder: where the adapter goes, as a PEFT folder; a finished one there is used as it is.
    """
    if (folder / "adapter_config.json").is_file():
        return folder
    tuning = Tuning(CONTROL_STEPS, 2e-4, 4, 16, full=False, seed=seed)

    def keep(policy: Any, step: int) -> Facts:
        if step == tuning.steps:
            with whole(folder) as temporary, quiet():
                policy.save_pretrained(temporary)
        return {}

    label = "Training the control on retain rows"
    tune(model, tokenizer, rows, tuning, keep, label=label, template=template)
    return folder


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
