"""Relearning: a few steps of fine-tuning with measurements in between, reverted afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergeforget.adapter_config import sort_config
from mergeforget.attack.target import Facts
from mergeforget.console import progress, quiet
from mergeforget.data.batches import pack
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import Encoded, encode_rows, fitting_length
from mergeforget.errors import NumericError
from mergeforget.files import replacing
from mergeforget.losses.gd import gd
from mergeforget.models import check_resident
from mergeforget.train.forward import predict
from mergeforget.train.lora_targets import lora_config

MAX_LENGTH = 512
CONTROL_STEPS = 100
UNRELATED = (  # general knowledge that names no person
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
    """Return built-in questions and answers of general knowledge."""
    return [Row(f"unrelated{i}", q, a, split="unrelated") for i, (q, a) in enumerate(UNRELATED)]


@dataclass(frozen=True)
class Tuning:
    """Settings of a fine-tuning with AdamW, without weight decay, schedule and dropout.

    Attributes:
        batch: Number of rows per step.
        rank: Rank of the LoRA on every linear layer; unused with ``full``.
        full: Train all weights of the model instead of a LoRA.
    """

    steps: int
    learning_rate: float
    batch: int
    rank: int
    full: bool
    seed: int

    def points(self) -> list[int]:
        """Return the steps at which the model is measured: 0, 1, 2, 3, 5, 7, 10, 15, 20, 30, ...

        They grow by a factor of about 1.4, so that a temporary recovery is not missed.
        """
        marks = [round(m * 10**k) for k in range(len(str(self.steps)))
                 for m in (1, 1.5, 2, 3, 4, 5, 7)]  # fmt: skip
        return sorted({0, self.steps} | {m for m in marks if m < self.steps})


def tune(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    tuning: Tuning,
    measure: Callable[[Any, int], Facts],
    *,
    label: str,
    template: PromptTemplate = RAW,
) -> list[Facts]:
    """Fine-tune a model on the answers of some rows, and restore it bit for bit afterwards.

    All models are trained on the same rows in the same order, with the same LoRA initialisation.

    Args:
        measure: Function of the model and the number of steps, called at ``tuning.points()``.

    Returns:
        Results of ``measure``, in that order.

    Raises:
        NumericError: The loss is not finite.
    """
    check_resident(model, "An attack that trains", one_device=True)
    encoded = encode_rows(
        tokenizer, rows, max_length=fitting_length(model, MAX_LENGTH), template=template
    )
    batches = _batches(encoded, tuning)
    points: list[Facts] = []
    with learner(model, tuning) as (policy, trained), progress(label, tuning.steps) as bar:
        optimizer = torch.optim.AdamW(trained, lr=tuning.learning_rate, weight_decay=0.0)
        for step in range(tuning.steps + 1):
            if step in tuning.points():
                points.append(measure(policy, step))
            if step < tuning.steps:
                loss = _step(policy, next(batches), optimizer)
                bar.advance(note=f"loss {loss:.3f}")
    return points


def train_control(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: Path,
    *,
    template: PromptTemplate = RAW,
    seed: int = 0,
) -> Path:
    """Train a control: a LoRA on the retain rows alone, for a model that never saw the data.

    Trains for ``CONTROL_STEPS`` steps with the optimiser of relearning. The control then knows the
    style of the rows, so a model can be ahead of it only through the content of the forget rows.

    Args:
        model: Model before the data was learned; restored afterwards.
        folder: PEFT folder of the adapter; an existing one is used without training.
    """
    if (folder / "adapter_config.json").is_file():
        return folder
    tuning = Tuning(CONTROL_STEPS, 2e-4, 4, 16, full=False, seed=seed)

    def keep(policy: Any, step: int) -> Facts:
        if step == tuning.steps:
            with replacing(folder) as temporary, quiet():
                policy.save_pretrained(temporary)
                sort_config(temporary)
        return {}

    label = "Training the control on retain rows"
    tune(model, tokenizer, rows, tuning, keep, label=label, template=template)
    return folder


@contextmanager
def learner(model: Any, tuning: Tuning) -> Iterator[tuple[Any, list[torch.nn.Parameter]]]:
    """Yield the model with trainable parameters in the block, and restore it afterwards."""
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
    """Yield the rows of each step: all rows once, then all rows again in another order."""
    draw = random.Random(tuning.seed)
    waiting: list[Encoded] = []
    while True:
        size = min(tuning.batch, len(encoded))
        while len(waiting) < size:
            waiting += draw.sample(list(encoded), len(encoded))
        yield waiting[:size]
        waiting = waiting[size:]


def _step(policy: Any, rows: list[Encoded], optimizer: torch.optim.Optimizer) -> float:
    """Take one optimiser step, and return the mean loss per answer token before it, in nats."""
    optimizer.zero_grad()
    loss = gd(predict(policy, pack(rows).to(policy.device)))
    if not torch.isfinite(loss):
        raise NumericError(
            f"The loss of relearning is {float(loss.detach())}. Use a lower --learning-rate."
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
