"""Gradient norms of single documents: a membership signal that costs a backward pass each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mergeforget.evaluate.batching import in_batches

PROMPT = -100  # label of a token whose loss does not count


def gradient_norms(
    model: Any,
    texts: Sequence[tuple[list[int], int]],
    *,
    label: str = "Gradients",
    on_done: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Norm of the gradient of each text's mean NLL with respect to all weights of the model.

    Each text takes a backward pass of its own; a weight's gradient is added to the norm and freed
    as soon as it is there, so that memory never holds the gradients of all.

    Args:
        texts: token ids, and the place of the first token that counts (0 or 1 for all).
        on_done: is given each text's place and norm as soon as it is done.

    Source: Pandora's White-Box, arXiv:2402.17012; OpenUnlearning's GradNorm.
    """
    return in_batches(
        model,
        [len(ids) for ids, _ in texts],
        lambda places: [_norm(model, *texts[i]) for i in places],
        budget=1,
        label=label,
        on_done=on_done,
    )


def _norm(model: Any, ids: list[int], start: int) -> float:
    """Of one text; 0 for one without a token to predict."""
    if len(ids) < 2 or start >= len(ids):
        return 0.0
    inputs = torch.tensor([ids], device=model.device)
    labels = inputs.clone()
    labels[:, :start] = PROMPT
    with torch.enable_grad(), _squares(model) as squares:
        model(input_ids=inputs, labels=labels, use_cache=False).loss.backward()
    return float(torch.stack([square.cpu() for square in squares]).sum().sqrt())


@contextmanager
def _squares(model: Any) -> Iterator[list[Tensor]]:
    """Squared norms of gradients, float32, as a backward pass makes them; none is kept."""
    squares: list[Tensor] = []

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        squares.append(parameter.grad.float().square().sum())
        parameter.grad = None

    parameters = list(model.parameters())
    wanted = [p.requires_grad for p in parameters]
    handles = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(parameter.is_floating_point())
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(take))
        yield squares
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.grad = None
            parameter.requires_grad_(before)
