"""Estimates the time of an unlearning request from a few measured passes of its model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeforget.api.unlearn_data import RequestRows
    from mergeforget.data.tokens import Encoded
    from mergeforget.recipe import Recipe

STEPS = 200  # optimiser steps of a training without `until`
TUNING = 2.0  # passes of a row in fine-tuning whose cost is that of weight gradients and AdamW
LEARNED = 0.8  # share of the epochs that memorising takes if it ends at a loss
ASKING = 2.3  # ratio of the time of an evaluation to that of its likelihoods
ATTACKS = ("prompts", "quantise", "relearn")  # whose time is estimated
PROMPTS = 190  # passes of a row per forget row, in `prompts`; measured with ten rows
ROUNDED = 50  # passes per row in `quantise`, which measures three models with three widths
RELEARNED = 18  # passes per row in the checks of `relearn`, of two models
PACE = 4  # rows of a batch whose time is measured


@dataclass(frozen=True)
class RowSeconds:
    """Measured seconds of one row: in a forward pass, and in the forward and backward of a batch.

    A forward pass over many rows uses several threads well; small batches do so much less.
    """

    forward: float
    batch: float


def seconds_per_row(model: Any, rows: Sequence[Encoded]) -> RowSeconds:
    """Measure the speed of a model on encoded rows; its weights get no gradients.

    Args:
        rows: Up to 16 of them are processed at once, and twice ``PACE`` of them in batches.
    """
    from mergeforget.data.batches import pack
    from mergeforget.train.checks import read_nlls
    from mergeforget.train.forward import predict

    many = (list(rows) * 16)[:16]
    read_nlls(model, many[:2])  # the first pass also checks the architecture
    begin = time.monotonic()
    read_nlls(model, many)
    forward = (time.monotonic() - begin) / len(many)
    needed = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in needed:
        p.requires_grad_(False)
    model.enable_input_require_grads()
    device = next(model.parameters()).device
    try:
        begin = time.monotonic()
        for start in (0, PACE):
            batch = pack(many[start : start + PACE]).to(device)
            predict(model, batch).nll().mean().backward()
        backward = (time.monotonic() - begin) / (2 * PACE)
    finally:
        model.disable_input_require_grads()
        for p, needs in needed:
            p.requires_grad_(needs)
    return RowSeconds(forward, backward)


def expected_seconds(
    recipe: Recipe, rows: RequestRows, memorise: bool, row: RowSeconds
) -> dict[str, float]:
    """Return the expected seconds of each stage and each attack.

    A step trains on three sets of ``batch_size`` rows. The levels, the range test and each check
    are forward passes over forget rows, their twins and unseen rows, in each form of prompts. The
    search measures six models in full and nine by their likelihoods, as long as nine in full, with
    three kinds of prompts.
    """
    from mergeforget.train.checks import SAMPLE

    forget, retain = len(rows.forget), len(rows.retain)
    training = None if recipe.pair is None else recipe.pair.over
    until = None if training is None else training.until
    steps = training.steps_until(forget)[1] if training and until else STEPS
    pair = row.batch * 3 * steps * (training.batch_size if training else 4)
    if training and until:
        trained = (2 if until.also_raw else 1) * forget
        unseen = (2 if until.also_raw else 1) * len(rows.holdout) // 2
        check = min(SAMPLE, trained) + min(SAMPLE, retain) + min(SAMPLE, unseen)
        checks = 2 + steps / training.steps_between_checks(trained)
        pair += row.forward * (checks * check + 3 * (trained + unseen))
    if memorise:
        epochs = recipe.memorise.epochs * (1 if recipe.memorise.stop_at is None else LEARNED)
        pair += epochs * (forget + retain) * (row.batch + TUNING * row.forward)
    search = ASKING * 9 * 3 * 2 * (forget + retain) * row.forward
    every = forget + retain + len(rows.holdout)
    attacks = (
        PROMPTS * forget * row.forward,
        ROUNDED * every * row.forward,
        RELEARNED * every * row.forward + 2 * 100 * 4 * row.batch,
    )
    return {"pair": pair, "search": search} | dict(zip(ATTACKS, attacks, strict=True))
