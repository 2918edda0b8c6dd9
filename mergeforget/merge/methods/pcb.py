"""PCB-Merging: score the entries of each delta by competition, keep the best, average them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, column, library
from mergeforget.merge.kernels.sign_election import total
from mergeforget.merge.kernels.thresholds import check_density, find_cuts, kept_by, kept_count
from mergeforget.merge.methods import merge_method

OUTLIERS = 1e-4  # fraction of the magnitudes that the authors' code clips at either end


@merge_method("pcb", source="PCB-Merging, arXiv:2410.02396, section 3.2", whole=True)
def pcb(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    scores: Literal["paper", "code"] = "paper",
) -> Tensor:
    """Weight each entry by its importance in its delta and by its agreement with the others.

    The score of entry x_i is ``softmax(n norm(x_i^2)) * sum_j softmax(norm(x_i x_j))``, with
    ``norm`` scaling a delta's scores to [0, 1] and the softmax taken within the delta. The
    fraction ``density`` with the highest scores is kept, and the result is
    ``sum_i s_i w_i x_i / sum_i s_i`` over the kept scores s.

    Args:
        scores: ``paper`` is the formula above. ``code`` is the published code
            (github.com/duguodong7/pcb-merging): the score is
            ``exp(n norm(|x_i|)^2) * tanh(x_i sum_j x_j)``, raised to the threshold instead of
            dropped below it and scaled to [0, 1] within a delta, after 0.01 % of the entries at
            either end of the magnitudes were clipped.
    """
    check_density(density)
    if scores not in ("paper", "code"):
        raise UsageError(f"scores is {scores!r}; it must be paper or code.")
    lib, n = library(stack), len(stack)
    if scores == "code":
        return _published(stack, weights, density)
    flat = stack.reshape(n, -1)
    k = kept_count(density, flat.shape[1])
    shares_of: Tensor = lib.empty_like(flat)
    for i, entries in enumerate(flat):
        importance = _softmax(n * _unit(entries * entries))
        agreement = total(lib.stack([_softmax(_unit(entries * other)) for other in flat]))
        score = importance * agreement * flat.shape[1]  # scaled to order 1 for float32
        shares_of[i] = score * kept_by(score, find_cuts(score, [k])[0], 0)
    shares = total(shares_of)
    merged: Tensor = total(shares_of * flat * column(weights, flat)) / (shares + (shares == 0))
    return merged.reshape(stack.shape[1:])


def _published(stack: Tensor, weights: Tensor, density: float) -> Tensor:
    """Merge with the scores of the authors' code."""
    lib, n = library(stack), len(stack)
    flat = stack.reshape(n, -1)
    numel, summed = flat.shape[1], total(flat)
    clipped, shares_of = lib.empty_like(flat), lib.empty_like(flat)
    for i, x in enumerate(flat):
        low, high = int(numel * OUTLIERS), int(numel * (1 - OUTLIERS) - 1)
        magnitude = _clipped(abs(x), low, high)
        clipped[i] = lib.sign(x) * magnitude
        score = lib.exp(n * _unit(magnitude) ** 2) * lib.tanh(x * summed)
        shares_of[i] = _unit(_clipped(score, min(numel - 1, int(numel * (1 - density))), numel - 1))
    weighted = total(clipped * shares_of * column(weights, flat))
    merged: Tensor = weighted / total(shares_of).clip(1e-12)
    return merged.reshape(stack.shape[1:])


def _clipped(x: Tensor, low: int, high: int) -> Tensor:
    """Clip to the order statistics of two indices, counted from the smallest."""
    ordered = library(x).sort(x)
    ordered = ordered if isinstance(x, np.ndarray) else ordered.values
    found: Tensor = x.clip(float(ordered[low]), float(ordered[max(low, high)]))
    return found


def _unit(x: Tensor) -> Tensor:
    """Scale to [0, 1]."""
    low, high = float(library(x).amin(x)), float(library(x).amax(x))
    return (x - low) / ((high - low) or 1.0)


def _softmax(x: Tensor) -> Tensor:
    powers = library(x).exp(x)
    shares: Tensor = powers / powers.sum()
    return shares
