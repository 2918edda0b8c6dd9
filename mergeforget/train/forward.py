"""One forward pass: the outputs that losses read, from the policy or from its reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mergeforget.data.batches import Batch
from mergeforget.outputs import TokenOutputs


def predict(
    model: Any,
    batch: Batch,
    *,
    row_total: int | None = None,
    token_total: dict[int, int] | None = None,
) -> TokenOutputs:
    """Run the model on a batch; logits are computed only where a loss reads them.

    Args:
        model: a causal language model, with or without an adapter.
        row_total: rows of the whole optimiser step; see TokenOutputs.
        token_total: kept positions of the whole optimiser step, by kind.
    """
    if batch.attention_mask is None:
        done = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            logits_to_keep=batch.keep,
            use_cache=False,
        )
        logits = done.logits[0]
    else:
        done = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        logits = done.logits.flatten(0, 1)[batch.keep]
    return TokenOutputs(
        logits,
        batch.labels,
        batch.row,
        batch.rows,
        batch.kind,
        row_total=row_total,
        token_total=token_total,
    )


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """The model before unlearning: the same one with its adapter switched off, no gradients.

    Bitwise the base model, and no second copy in memory.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        model.train(was_training)
