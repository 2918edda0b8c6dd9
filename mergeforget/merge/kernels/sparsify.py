"""Dropping entries: the small ones, the outliers, or some at random, and making up for it.

Every function takes the stacked tensors of one module, (n, *shape), numpy or torch; inputs are
never changed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, cast, column, library, like
from mergeforget.merge.kernels.dispatch import loops
from mergeforget.merge.kernels.rng import Chance
from mergeforget.merge.kernels.thresholds import (
    KnownDensity,
    check_density,
    find_cuts,
    kept_by,
    kept_count,
)

Rescale = Literal["density", "l1", "none"]


class KnownL1(str):
    """``l1`` for blocks of tensors whose norms, before and after the drop, are known.

    Attributes:
        factors: what each of the n tensors is multiplied by, (n,).
    """

    factors: Tensor

    def __new__(cls, factors: Tensor) -> KnownL1:
        self = super().__new__(cls, "l1")
        self.factors = factors
        return self


def trim(stack: Tensor, density: float) -> Tensor:
    """Keep the largest entries of each tensor, by magnitude; set the others to zero.

    Args:
        stack: (n, *shape)
        density: Fraction of entries kept in each tensor, in (0, 1]; at least one is kept. A
            ``KnownDensity`` brings its cuts along and gives the same bits.

    Returns:
        Trimmed tensors, same shape, dtype and device.

    Raises:
        DensityError: ``density`` is outside (0, 1].

    Source: TIES-Merging, arXiv:2306.01708, Algorithm 1, "trim". Each tensor is trimmed by itself,
        as PEFT does; the paper trims the whole model at once. Of entries equal in magnitude at the
        cut those of the lowest index are kept; PEFT and mergekit leave their choice open.
    """
    check_density(density)
    if density == 1:
        return stack
    flat = stack.reshape(len(stack), -1)
    k = kept_count(density, flat.shape[1])
    known = density if isinstance(density, KnownDensity) else None
    kept = library(stack).empty_like(flat)
    offset, quick = known.offset if known else 0, loops(flat)
    for i, tensor in enumerate(flat):
        magnitude = None if known and quick else abs(tensor)
        cut = known.cuts[i] if known else find_cuts(magnitude, [k])[0]
        if quick:
            quick.trim(tensor, tensor.view(np.int32), *cut.within(offset), kept[i])
        else:
            kept[i] = tensor * kept_by(magnitude, cut, offset)
    return kept.reshape(stack.shape)


def drop(stack: Tensor, density: float, chance: Chance, *, rescale: Rescale = "density") -> Tensor:
    """Keep each entry with probability ``density``, then make up for what was dropped.

    Args:
        stack: (n, *shape)
        density: Probability of keeping an entry, in (0, 1].
        chance: One number is drawn for each entry, in order, whatever the density: the pattern of
            a larger density contains that of a smaller one.
        rescale: ``density`` divides by it (the paper, PEFT); ``l1`` restores the L1 norm of each
            tensor (mergekit); ``none`` leaves the kept entries as they are.

    Returns:
        Same shape, dtype and device.

    Raises:
        DensityError: ``density`` is outside (0, 1].

    Source: DARE, arXiv:2311.03099, section 3.1.
    """
    check_density(density)
    if density == 1:
        return stack
    flat = stack.reshape(len(stack), -1)
    kept = library(stack).empty_like(flat)
    quick = loops(flat)
    for i, tensor in enumerate(flat):
        if quick:
            quick.thin(tensor, chance.numbers(i, len(tensor)), chance.limit(density), kept[i])
        else:
            kept[i] = tensor * like(chance.below(density, i, len(tensor)), stack)
    return rescaled(kept.reshape(stack.shape), stack, density, rescale)


def rescaled(kept: Tensor, stack: Tensor, density: float, rescale: Rescale) -> Tensor:
    """Make up, in place, for the entries that a random method dropped, see ``drop``."""
    if rescale == "none":
        return kept
    if rescale == "density":
        kept /= density
        return kept
    if rescale != "l1":
        raise UsageError(f"rescale is {rescale!r}; it must be one of density, l1, none.")
    if isinstance(rescale, KnownL1):
        factors = rescale.factors
    else:
        factors = l1_factors(row_sums(stack), row_sums(kept))
    kept *= column(factors, stack)
    return kept


def row_sums(stack: Tensor) -> Tensor:
    """Sums of the magnitudes in each row, (n, rows); a vector is one row."""
    rows = stack.reshape(len(stack), -1, stack.shape[-1])
    return cast(library(stack).abs(rows).sum(-1), "float64")


def l1_factors(before: Tensor, after: Tensor) -> Tensor:
    """What restores each L1 norm, (n,), from ``row_sums`` of the whole tensors."""
    norms, left = before.sum(-1), after.sum(-1)
    small = (norms < 1e-7) | (left < 1e-7)  # mergekit's guard
    return library(norms).where(small, norms * 0 + 1, norms / (left + small))


def outliers(stack: Tensor, density: float, gamma: float) -> Tensor:
    """Drop the largest ``gamma`` share of each tensor, keep the next ``density`` share.

    Args:
        stack: (n, *shape)
        density: in (0, 1]; ``int(density * numel)`` entries are kept, at least 1.
        gamma: in [0, 1); ``int(gamma * numel)`` entries are dropped as outliers, fewer where the
            density needs them.

    Returns:
        Same shape, dtype and device. Of entries equal in magnitude at a cut those of the lowest
        index count as the larger ones.

    Source: Model Breadcrumbs, arXiv:2312.06795.
    """
    check_density(density)
    if not 0 <= gamma < 1:
        raise UsageError(f"gamma is {gamma}, but it is a share of outliers and must be in [0, 1).")
    flat = stack.reshape(len(stack), -1)
    numel = flat.shape[1]
    kept = kept_count(density, numel)
    top = min(int(gamma * numel), numel - kept)
    above = top + kept
    result = library(stack).empty_like(flat)
    for i, tensor in enumerate(flat):
        magnitude = abs(tensor)
        cuts = find_cuts(magnitude, [above, top] if top else [above])
        mask = kept_by(magnitude, cuts[0], 0)
        result[i] = tensor * (mask & ~kept_by(magnitude, cuts[1], 0) if top else mask)
    return result.reshape(stack.shape)


def magprune(
    stack: Tensor, density: float, epsilon: float, chance: Chance, *, rescale: Rescale = "l1"
) -> Tensor:
    """Drop entries at random, the small ones of each row more often, then make up for it.

    Args:
        stack: (n, rows, columns)
        density: the mean probability of keeping an entry, in (0, 1).
        epsilon: the smallest entry of a row is kept with probability ``density - epsilon``, the
            largest with ``density + epsilon``, linear in the rank between; both in (0, 1).

    Returns:
        Same shape, dtype and device.

    Source: DELLA-Merging, arXiv:2406.11617, MAGPRUNE. Of entries equal in magnitude the one of
        the higher index ranks higher.
    """
    check_density(density)
    if density == 1:
        return stack
    low, high = density - epsilon, density + epsilon
    if not (0 < low <= high < 1):
        raise UsageError(
            f"density {density:g} and epsilon {epsilon:g} give keep probabilities from {low:g} to "
            f"{high:g}; both must lie in (0, 1). Choose a smaller epsilon, --set epsilon=0.05."
        )
    kept = library(stack).empty_like(stack)
    columns = stack.shape[-1]
    for i, tensor in enumerate(stack):
        ranks = _ranks(abs(tensor).reshape(-1, columns))  # from 0
        share = ranks / max(1, columns - 1) if columns > 1 else ranks * 0 + 0.5
        drawn = like(chance.uniform(i, tensor.reshape(-1).shape[0]), tensor)
        mask = drawn.reshape(tensor.shape) < like(low + share * (high - low), tensor).reshape(
            tensor.shape
        )
        kept[i] = tensor * mask
    return rescaled(kept, stack, density, rescale)


def _ranks(magnitude: Tensor) -> Tensor:
    """Rank of each entry in its row, ascending from 0, (rows, columns)."""
    if isinstance(magnitude, np.ndarray):
        return magnitude.argsort(-1, kind="stable").argsort(-1, kind="stable")
    order = magnitude.argsort(dim=-1, stable=True)
    return order.argsort(dim=-1, stable=True)
