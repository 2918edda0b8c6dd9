"""Compute log-probabilities and divergences in chunks, without a (tokens, vocabulary) table.

A loss needs one number per token: the log-probability of a label, or a divergence from a target.
The gradient with respect to the hidden state is a difference of two distributions times the output
matrix, and it is computed together with the value. The forward pass stores this (tokens, width)
gradient and drops each chunk's logits; the backward pass only scales it. With a frozen output
matrix, as in LoRA, this takes no more arithmetic than materialising the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # tokens per chunk; 100 MB of float32 logits for a vocabulary of 50,000

Target = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(logits, the reference's logits, labels) of a chunk -> log of a distribution, (n, vocabulary)."""


@dataclass(frozen=True)
class Projection:
    """Deferred logits: ``hidden @ weight.T``.

    Attributes:
        hidden: (tokens, width), input of the output layer.
        weight: (vocabulary, width), the output matrix.
    """

    hidden: Tensor
    weight: Tensor

    def logits(self) -> Tensor:
        """Return all logits, (tokens, vocabulary)."""
        return self.hidden @ self.weight.T


@dataclass(frozen=True)
class Contrast:
    """Deferred logits ``z - alpha relu(z_reinforced - z)`` of two sources; see the loss whp."""

    base: Tensor | Projection
    reinforced: Tensor | Projection
    alpha: float

    def chunk(self, n: slice) -> Tensor:
        """Logits of some tokens, float32 or wider, without a gradient."""
        base, reinforced = _chunk(self.base, n), _chunk(self.reinforced, n)
        assert base is not None and reinforced is not None
        return base - self.alpha * F.relu(reinforced - base)


Other = Tensor | Projection | Contrast | None  # predictions that a target is made of


def rows_of(source: Tensor | Projection | None, n: slice) -> Tensor | Projection | None:
    """Return the predictions of some tokens, as a view."""
    if isinstance(source, Projection):
        return Projection(source.hidden[n], source.weight)
    return None if source is None else source[n]


def label_logps(source: Tensor | Projection, labels: Tensor) -> Tensor:
    """(tokens,) log-probability of each label, in nats, float32 or wider."""
    if isinstance(source, Tensor):
        return -F.cross_entropy(widened(source), labels, reduction="none")
    if not source.weight.requires_grad:
        logps: Tensor = _LabelLogps.apply(source.hidden, source.weight, labels)
        return logps
    return _in_chunks(lambda s, n: label_logps(s.logits(), labels[n]), source)


def top_labels(source: Tensor | Projection) -> Tensor:
    """(tokens,) the most likely label of each prediction, without a gradient."""
    with torch.no_grad():
        if isinstance(source, Tensor):
            return source.argmax(-1)
        parts = [
            (source.hidden[n] @ source.weight.T).argmax(-1) for n in _slices(len(source.hidden))
        ]
        return torch.cat(parts) if parts else source.hidden.new_zeros(0, dtype=torch.long)


def divergence(
    source: Tensor | Projection, other: Other, labels: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """Divergence of predictions from a fixed target distribution.

    Args:
        source: The policy's predictions.
        other: The reference's predictions, if ``target`` needs them.

    Returns:
        ``KL(target || policy)`` and the target's entropy, each (tokens,), in nats. Their sum is the
        cross entropy; only the first has a gradient.
    """
    if isinstance(source, Tensor):
        with torch.no_grad():
            log_target = target(widened(source), _chunk(other, slice(None)), labels)
        return _divergence(widened(source), log_target)
    if not source.weight.requires_grad:
        pair: tuple[Tensor, Tensor] = _Divergence.apply(
            source.hidden, source.weight, other, labels, target
        )
        return pair

    def part(s: Projection, n: slice) -> Tensor:
        return torch.stack(divergence(s.logits(), _chunk(other, n), labels[n], target), 1)

    both = _in_chunks(part, source)
    return both[:, 0], both[:, 1].detach()


def values_of_logits(
    source: Tensor | Projection, other: Other, value: Callable[[Tensor, Tensor | None], Tensor]
) -> Tensor:
    """(tokens,) a value of each prediction; the backward pass recomputes the logits of a chunk.

    Args:
        source: The policy's predictions.
        other: The reference's predictions, if ``value`` needs them.
        value: (logits, the reference's logits) of a chunk -> (n,), differentiable in the first.
    """
    if isinstance(source, Tensor):
        return value(widened(source), _chunk(other, slice(None)))
    return _in_chunks(lambda s, n: value(widened(s.logits()), _chunk(other, n)), source)


def widened(logits: Tensor) -> Tensor:
    """Logits in float32 or wider; a softmax over a vocabulary loses bits in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _LabelLogps(torch.autograd.Function):
    """Log-probabilities of labels; d logp / d hidden = weight[label] - p @ weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logps, slopes = [], []
        for n in _slices(len(hidden)):
            logits = widened(hidden[n] @ weight.T)
            log_z = logits.logsumexp(-1, keepdim=True)
            here = labels[n, None]
            logps.append((logits.gather(1, here) - log_z).squeeze(1))
            if ctx.needs_input_grad[0]:
                p = logits.sub_(log_z).exp_()  # in place, because the chunk is the largest tensor
                p.scatter_add_(1, here, torch.full_like(here, -1, dtype=p.dtype))
                slopes.append(-(p.to(weight.dtype) @ weight))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(logps) if logps else widened(hidden.new_zeros(0))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        return _scaled(ctx, upstream), None, None


class _Divergence(torch.autograd.Function):
    """KL from a fixed target, and the target's entropy; d KL / d hidden = (p - t) @ weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        other: Other,
        labels: Tensor,
        target: Target,
    ) -> tuple[Tensor, Tensor]:
        values, entropies, slopes = [], [], []
        for n in _slices(len(hidden)):
            logits = widened(hidden[n] @ weight.T)
            log_target = target(logits, _chunk(other, n), labels[n])
            value, entropy = _divergence(logits, log_target)
            values.append(value)
            entropies.append(entropy)
            if ctx.needs_input_grad[0]:
                difference = logits.softmax(-1) - log_target.exp()
                slopes.append(difference.to(weight.dtype) @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        none = [widened(hidden.new_zeros(0))]
        entropy = torch.cat(entropies or none)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(values or none), entropy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return _scaled(ctx, upstream), None, None, None, None


def _scaled(ctx: Any, upstream: Tensor) -> Tensor | None:
    if not ctx.saved_tensors:
        return None
    slopes: Tensor = ctx.saved_tensors[0]
    return (upstream[:, None] * slopes).to(slopes.dtype)


def _divergence(logits: Tensor, log_target: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(target || softmax(logits)) and the entropy of the target, with 0 log 0 = 0."""
    log_p = F.log_softmax(logits, -1)
    t = log_target.exp()
    finite = torch.where(t > 0, log_target, torch.zeros_like(log_target))
    return (t * (finite - log_p)).sum(-1), -(t * finite).sum(-1)


def _chunk(source: Other, n: slice) -> Tensor | None:
    """Return the logits of some tokens, float32 or wider, without a gradient."""
    if source is None:
        return None
    with torch.no_grad():
        if isinstance(source, Contrast):
            return source.chunk(n)
        if isinstance(source, Tensor):
            return widened(source[n])
        return widened(source.hidden[n] @ source.weight.T)


def _in_chunks(part: Callable[[Projection, slice], Tensor], source: Projection) -> Tensor:
    """Chunked evaluation; the backward pass recomputes each chunk."""
    if len(source.hidden) <= CHUNK:
        return part(source, slice(None))
    parts = []
    for n in _slices(len(source.hidden)):

        def run(hidden: Tensor, weight: Tensor, n: slice = n) -> Tensor:
            return part(Projection(hidden, weight), n)

        parts.append(checkpoint(run, source.hidden[n], source.weight, use_reentrant=False))
    return torch.cat(parts)


def _slices(tokens: int) -> list[slice]:
    return [slice(s, min(s + CHUNK, tokens)) for s in range(0, tokens, CHUNK)]
