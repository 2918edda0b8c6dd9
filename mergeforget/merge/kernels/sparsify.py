"""Drop small entries, outliers, or random entries, and rescale the rest.

Every function takes the stacked tensors of one module, (n, *shape), numpy or torch; inputs are
never changed.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, column, library, like, to_dtype
from mergeforget.merge.kernels.dispatch import loops
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.thresholds import (
    Cuts,
    check_density,
    find_cuts,
    kept_by,
    kept_count,
)

Rescale = Literal["density", "l1", "none"]
LANES = 8  # partial sums of a row; ``numba_bf16.add_lanes`` has one variable for each


def trim(stack: Tensor, density: float, cuts: Cuts | None = None) -> Tensor:
    """Keep the largest-magnitude entries of each delta and zero the rest.

    Args:
        stack: Deltas of one module, (n, *shape).
        density: Fraction of entries kept in each delta, in (0, 1]. At least one entry is kept.
        cuts: Precomputed thresholds for this density, for example of the whole tensors of which
            ``stack`` is a block. The result is bit-identical.

    Returns:
        Trimmed deltas with the same shape, dtype and device. The input is not modified.

    Raises:
        DensityError: ``density`` is outside (0, 1].

    Source: TIES-Merging, arXiv:2306.01708, Algorithm 1, "trim". Each tensor is trimmed separately,
        as in PEFT; the paper trims the whole model at once. Of entries with equal magnitude at the
        threshold, those with the lowest index are kept; PEFT and mergekit do not define the order.
    """
    check_density(density)
    if density == 1:
        return stack
    flat = stack.reshape(len(stack), -1)
    k = kept_count(density, flat.shape[1])
    kept: Tensor = library(stack).empty_like(flat)
    offset, quick = cuts.offset if cuts else 0, loops(flat)
    for i, tensor in enumerate(flat):
        magnitude = tensor if cuts and quick else abs(tensor)  # not used by the compiled loops
        cut = cuts.thresholds[i] if cuts else find_cuts(magnitude, [k])[0]
        if quick:
            quick.trim(tensor, tensor.view(np.int32), *cut.within(offset), kept[i])
        elif isinstance(tensor, np.ndarray):
            np.multiply(tensor, kept_by(magnitude, cut, offset), out=kept[i])
        else:
            kept[i] = tensor * kept_by(magnitude, cut, offset)
    trimmed: Tensor = kept.reshape(stack.shape)
    return trimmed


def drop(
    stack: Tensor,
    density: float,
    generator: NamedGenerator,
    *,
    rescale: Rescale = "density",
    l1_factors: Tensor | None = None,
) -> Tensor:
    """Keep each entry with probability ``density``, then rescale the kept entries.

    Args:
        stack: Deltas of one module, (n, *shape).
        density: Probability of keeping an entry, in (0, 1].
        generator: Draws one number per entry, in order, at every density. The entries kept at a
            larger density therefore contain those kept at a smaller one.
        rescale: ``density`` divides by the density (the paper, PEFT); ``l1`` restores the L1 norm
            of each tensor (mergekit); ``none`` does not rescale.
        l1_factors: Factors of ``rescale="l1"``, (n,), of the whole tensors of which
            ``stack`` is a block. None computes them from ``stack``.

    Returns:
        Same shape, dtype and device. The input is not modified.

    Raises:
        DensityError: ``density`` is outside (0, 1].

    Source: DARE, arXiv:2311.03099, section 3.1.
    """
    check_density(density)
    if density == 1:
        return stack
    flat = stack.reshape(len(stack), -1)
    kept: Tensor = library(stack).empty_like(flat)
    quick = loops(flat)
    for i, tensor in enumerate(flat):
        if quick:
            drawn, limit = generator.numbers(i, len(tensor)), generator.limit(density)
            quick.thin(tensor, drawn, limit, kept[i])
        else:
            kept[i] = tensor * like(generator.below(density, i, len(tensor)), stack)
    return rescaled(kept.reshape(stack.shape), stack, density, rescale, l1_factors)


def rescaled(
    kept: Tensor, stack: Tensor, density: float, rescale: Rescale, l1_factors: Tensor | None = None
) -> Tensor:
    """Rescale the kept entries of a random method in place; arguments as in ``drop``."""
    if rescale == "none":
        return kept
    scaled: Any = kept
    if rescale == "density":
        scaled /= density
        return kept
    if rescale != "l1":
        raise UsageError(f"rescale is {rescale!r}; it must be one of density, l1, none.")
    if l1_factors is None:
        l1_factors = factors_of_l1(row_sums(stack), row_sums(kept))
    scaled *= column(l1_factors, stack)
    return kept


def row_sums(stack: Tensor) -> Tensor:
    """Return the sum of magnitudes of each row in float64, (n, rows); a vector is one row.

    Entries at the same index modulo LANES are added first, as in the compiled loops.
    """
    columns = stack.shape[-1]
    rows = to_dtype(abs(stack).reshape(len(stack), -1, columns), "float64")
    aligned = columns // LANES * LANES
    lanes = rows[..., :aligned].reshape(*rows.shape[:2], -1, LANES).sum(2)
    lanes[..., : columns - aligned] += rows[..., aligned:]
    summed: Tensor = lanes[..., 0]
    for k in range(1, LANES):
        summed = summed + lanes[..., k]
    return summed


def factors_of_l1(before: Tensor, after: Tensor) -> Tensor:
    """Return the factors that restore the L1 norms, (n,), from ``row_sums`` of whole tensors."""
    norms, left = before.sum(-1), after.sum(-1)
    small = (norms < 1e-7) | (left < 1e-7)  # the threshold of mergekit
    factors: Tensor = library(norms).where(small, norms * 0 + 1, norms / (left + small))
    return factors


def outliers(stack: Tensor, density: float, gamma: float) -> Tensor:
    """Drop the largest ``gamma`` share of each tensor, keep the next ``density`` share.

    Args:
        stack: (n, *shape)
        density: Fraction in (0, 1]; ``int(density * numel)`` entries are kept, at least 1.
        gamma: Fraction in [0, 1); ``int(gamma * numel)`` entries are dropped as outliers, fewer if
            the density needs them.

    Returns:
        Same shape, dtype and device. Of entries with equal magnitude, those with the lowest
        index rank as larger.

    Source: Model Breadcrumbs, arXiv:2312.06795.
    """
    check_density(density)
    if not 0 <= gamma < 1:
        raise UsageError(f"gamma is {gamma}, but it is a share of outliers and must be in [0, 1).")
    flat = stack.reshape(len(stack), -1)
    numel = flat.shape[1]
    count = kept_count(density, numel)
    top = min(int(gamma * numel), numel - count)
    above = top + count
    result: Tensor = library(stack).empty_like(flat)
    for i, tensor in enumerate(flat):
        magnitude = abs(tensor)
        cuts = find_cuts(magnitude, [above, top] if top else [above])
        mask = kept_by(magnitude, cuts[0], 0)
        result[i] = tensor * (mask & ~kept_by(magnitude, cuts[1], 0) if top else mask)
    return result.reshape(stack.shape)


def magprune(
    stack: Tensor,
    density: float,
    epsilon: float,
    generator: NamedGenerator,
    *,
    rescale: Rescale = "l1",
    l1_factors: Tensor | None = None,
) -> Tensor:
    """Drop entries at random, the small ones of each row more often, then rescale the rest.

    Args:
        stack: (n, rows, columns)
        density: Mean probability of keeping an entry, in (0, 1).
        epsilon: The smallest entry of a row is kept with probability ``density - epsilon``, the
            largest with ``density + epsilon``, linear in the rank; both must be in (0, 1).

    Returns:
        Same shape, dtype and device.

    Source: DELLA-Merging, arXiv:2406.11617, MAGPRUNE. Of entries with equal magnitude, the one with
        the higher index ranks higher.
    """
    check_density(density)
    if density == 1:
        return stack
    low, high = density - epsilon, density + epsilon
    if not (0 < low <= high < 1):
        raise UsageError(
            f"density {density:g} and epsilon {epsilon:g} give keep probabilities from {low:g} to "
            f"{high:g}; both must be in (0, 1). Lower epsilon, for example --set epsilon=0.05."
        )
    kept: Tensor = library(stack).empty_like(stack)
    columns = stack.shape[-1]
    for i, tensor in enumerate(stack):
        ranks = _ranks(abs(tensor).reshape(-1, columns))  # starting at 0
        share = ranks / max(1, columns - 1) if columns > 1 else ranks * 0 + 0.5
        drawn = like(generator.uniform(i, tensor.reshape(-1).shape[0]), tensor)
        mask = drawn.reshape(tensor.shape) < like(low + share * (high - low), tensor).reshape(
            tensor.shape
        )
        kept[i] = tensor * mask
    return rescaled(kept, stack, density, rescale, l1_factors)


def _ranks(magnitude: Tensor) -> Tensor:
    """Return the rank of each entry in its row, ascending from 0, (rows, columns)."""
    if isinstance(magnitude, np.ndarray):
        return magnitude.argsort(-1, kind="stable").argsort(-1, kind="stable")
    order = magnitude.argsort(dim=-1, stable=True)
    return order.argsort(dim=-1, stable=True)
