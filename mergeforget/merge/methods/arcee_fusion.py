"""Arcee Fusion: keep the entries of one delta that change the row's distribution most."""

from __future__ import annotations

from typing import Any

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, column, library, like
from mergeforget.merge.kernels.thresholds import kth_largest
from mergeforget.merge.methods import merge_method

EPSILON = 1e-8  # added to probabilities before the logarithm


@merge_method("arcee_fusion", source="mergekit, Arcee Fusion (https://arcee.ai)", whole=True)
def arcee_fusion(stack: Tensor, weights: Tensor, *, base_weights: Tensor) -> Tensor:
    """Zero the entries of ``w x`` whose importance is below the median plus 1.5 IQR.

    The importance of an entry is ``|x|`` times the KL divergence between the softmax of the
    fine-tuned row and that of the base's row. Merges one model into the base.

    The quartiles are exact. mergekit estimates them from a random sample of a million entries
    of larger tensors, so its result varies from run to run.

    Args:
        base_weights: The base's own tensor, (*shape).
    """
    if len(stack) != 1:
        raise UsageError(
            f"arcee_fusion merges one model into its base, not {len(stack)}: name one --model."
        )
    delta, base = stack[0], like(base_weights, stack)
    tuned = _probabilities(base + delta)
    plain = _probabilities(base)
    divergence = (tuned * library(delta).log(tuned / plain)).sum(-1)
    importance = abs(delta) * divergence[..., None]
    mask: Any = importance >= _threshold(importance.reshape(-1))
    merged: Tensor = delta * mask * column(weights, stack)[0]
    return merged


def _probabilities(x: Tensor) -> Tensor:
    """Return the softmax of each row, plus a small constant."""
    lib = library(x)
    powers = lib.exp(x - lib.amax(x, -1)[..., None])
    shares: Tensor = powers / powers.sum(-1)[..., None] + EPSILON
    return shares


def _threshold(values: Tensor) -> float:
    """Return the median plus 1.5 interquartile ranges of (numel,), without interpolation.

    The divergence may be negative due to rounding, so the values are shifted to at least zero.
    """
    numel, low = len(values), float(library(values).amin(values))
    places = [int(share * (numel - 1)) for share in (0.25, 0.5, 0.75)]  # quartiles
    shifted = values - low if low < 0 else abs(values)
    found = kth_largest(shifted, [numel - place for place in places])
    lower, median, upper = (value + min(low, 0.0) for value in found)
    return median + 1.5 * (upper - lower)
