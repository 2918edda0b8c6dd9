"""The steps that merge methods are made of: trim, drop, elect a sign, average what agrees.

Every function takes the stacked tensors of one module, (n, *shape), as a numpy array or as a torch
tensor on any device, and answers in kind; numpy arrays are merged without torch being imported.
Inputs are never changed. Sums over the n tensors run from the first to the last, as torch's do, so
that equal inputs give equal bits in both libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from mergeforget.errors import DensityError, UsageError
from mergeforget.merge.chance import Chance

FEW = 3  # ranks up to which partitions are faster than one sort
Tensor = Any  # numpy.ndarray or torch.Tensor
Sign = Literal["total", "count"]
Rescale = Literal["density", "l1", "none"]
Vote = Literal["unweighted", "weighted"]
Divide = Literal["count", "weights", "none"]


class Cut(NamedTuple):
    """Where a trim cuts one tensor: it keeps exactly k entries.

    Attributes:
        value: the k-th largest magnitude; larger ones are kept.
        last: of the entries at ``value``, those up to this flat index are kept; None for all.
    """

    value: float
    last: int | None = None


class KnownDensity(float):
    """A density that knows its cuts, so that ``trim`` need not look for them.

    The cuts may be those of whole tensors of which the stack is a block, and many densities may
    have found theirs in one pass, see ``select``.

    Attributes:
        cuts: one for each of the n tensors.
        offset: flat index, in the whole tensors, of the first entry of the stack.
    """

    cuts: Sequence[Cut]
    offset: int

    def __new__(cls, density: float, cuts: Sequence[Cut], offset: int = 0) -> KnownDensity:
        self = super().__new__(cls, density)
        self.cuts, self.offset = cuts, offset
        return self


def library(x: Tensor) -> ModuleType:
    """numpy, or torch for a tensor of torch; the functions used here have one name in both."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def check_density(density: float) -> None:
    """Raise DensityError unless ``density`` is in (0, 1]."""
    if not 0 < density <= 1:
        raise DensityError(density)


def kept_count(density: float, numel: int) -> int:
    """How many of ``numel`` entries a density keeps: ``int(density * numel)``, at least one."""
    return min(numel, max(1, int(density * numel)))


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
    for i, tensor in enumerate(flat):
        magnitude = abs(tensor)
        cut = known.cuts[i] if known else find_cuts(magnitude, [k])[0]
        kept[i] = tensor * kept_by(magnitude, cut, known.offset if known else 0)
    return kept.reshape(stack.shape)


def find_cuts(magnitude: Tensor, ranks: Sequence[int]) -> list[Cut]:
    """Where to cut (numel,) magnitudes so that k entries are kept, for each k of ``ranks``."""
    numel = len(magnitude)
    tied = [min(numel, k + 1) for k in ranks]  # does the next one lie at the cut too?
    found = kth_largest(magnitude, [*ranks, *tied])
    cuts = []
    for k, value, following in zip(ranks, found, found[len(ranks) :], strict=False):
        if k == numel or following != value:
            cuts.append(Cut(value))
            continue
        above = int(library(magnitude).count_nonzero(magnitude > value))
        (at_cut,) = library(magnitude).where(magnitude == value)
        cuts.append(Cut(value, int(at_cut[k - above - 1])))
    return cuts


def kth_largest(magnitude: Tensor, ranks: Sequence[int]) -> list[float]:
    """The k-th largest of (numel,) magnitudes for each k of ``ranks``; k counts from 1."""
    numel = len(magnitude)
    if not isinstance(magnitude, np.ndarray):
        if len(ranks) == 1:
            return [float(magnitude.kthvalue(numel - ranks[0] + 1).values)]
        ordered = magnitude.sort().values
        return [float(ordered[numel - k]) for k in ranks]
    bits = magnitude.view(f"i{magnitude.itemsize}")  # order of floats >= 0, twice as fast
    places = [numel - k for k in ranks]
    if len(set(places)) > FEW:
        ordered = np.sort(bits)
    else:
        ordered = bits.copy()
        end = numel  # what lies from here on is larger, and in place
        for place in sorted(set(places), reverse=True):
            ordered[:end].partition(place)
            end = place
    return [float(x) for x in ordered[places].view(magnitude.dtype)]


def kept_by(magnitude: Tensor, cut: Cut, offset: int) -> Tensor:
    """Mask of the entries, (numel,), that a cut keeps."""
    if cut.last is None:
        return magnitude >= cut.value
    mask = magnitude > cut.value
    (at_cut,) = library(magnitude).where(magnitude == cut.value)
    mask[at_cut[at_cut + offset <= cut.last]] = True
    return mask


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
    for i, tensor in enumerate(flat):
        kept[i] = tensor * like(chance.below(density, i, len(tensor)), stack)
    return rescaled(kept.reshape(stack.shape), stack, density, rescale)


def rescaled(kept: Tensor, stack: Tensor, density: float, rescale: Rescale) -> Tensor:
    """Make up for the entries that a random method dropped, see ``drop``."""
    if rescale == "none":
        return kept
    if rescale == "density":
        return kept / density
    if rescale != "l1":
        raise UsageError(f"rescale is {rescale!r}; it must be one of density, l1, none.")
    before = library(stack).abs(stack.reshape(len(stack), -1)).sum(-1)  # (n,)
    after = library(stack).abs(kept.reshape(len(stack), -1)).sum(-1)
    small = (before < 1e-7) | (after < 1e-7)  # mergekit's guard
    factor = library(stack).where(small, before * 0 + 1, before / (after + small))
    return kept * column(factor, stack)


def elect(stack: Tensor, sign: Sign = "total") -> Tensor:
    """Say which entries have the sign that most of the tensors want at their place.

    Args:
        stack: (n, *shape), trimmed.
        sign: ``total`` takes the sign of the sum, ``count`` that of the sum of signs; a sum of
            zero counts as positive.

    Returns:
        Boolean, (n, *shape). An entry of zero never agrees.

    Source: TIES-Merging, arXiv:2306.01708, Algorithm 1, "elect". ``count`` is PEFT's "frequency".
    """
    if sign not in ("total", "count"):
        raise UsageError(f"sign is {sign!r}; it must be total or count.")
    positive, negative = stack > 0, stack < 0
    if sign == "total":
        up = total(stack) >= 0
    else:
        up = positive.sum(0) >= negative.sum(0)
    return (positive & up) | (negative & ~up)


def total(stack: Tensor) -> Tensor:
    """Sum over the n tensors, first to last, starting from zero (so that no -0.0 remains)."""
    summed = stack[0] + 0.0
    for tensor in stack[1:]:
        summed += tensor
    return summed


def weighted_sum(
    stack: Tensor, weights: Tensor, *, normalize: bool = False, scale: float = 1.0
) -> Tensor:
    """``scale * sum_i w_i x_i``; ``normalize`` divides by ``sum_i w_i``, 0 counting as 1."""
    return total(stack * column(weights * scale_of(weights, normalize, scale), stack))


def scale_of(weights: Tensor, normalize: bool, scale: float) -> float:
    """``scale``, with ``normalize`` over the sum of the weights (0 counts as 1)."""
    shares = float(weights.sum()) if normalize else 1.0
    return scale / (shares if abs(shares) >= 1e-8 else 1.0)


def disjoint_mean(
    stack: Tensor,
    weights: Tensor,
    agree: Tensor,
    *,
    divide: Divide = "count",
    scale: float = 1.0,
) -> Tensor:
    """Average, at each place, the weighted entries that agree with the elected sign.

    Args:
        stack: (n, *shape)
        weights: (n,)
        agree: Boolean, (n, *shape), from ``elect``.
        divide: by the number that agree, at least 1 (PEFT, the paper); by the sum of their
            weights, 0 counting as 1 (mergekit's ``normalize``); or not at all.
        scale: multiplies the result (mergekit's ``lambda``).

    Returns:
        (*shape)

    Source: TIES-Merging, arXiv:2306.01708, Algorithm 1, "disjoint merge".
    """
    summed = total(stack * column(weights, stack) * agree)
    if divide == "count":
        summed = summed / total(agree * column(weights * 0 + 1, stack)).clip(1)
    elif divide == "weights":
        shares = total(agree * column(weights, stack))
        summed = summed / (shares + (shares == 0))
    elif divide != "none":
        raise UsageError(f"divide is {divide!r}; it must be one of count, weights, none.")
    return summed if scale == 1 else summed * scale


def consensus(
    stack: Tensor,
    weights: Tensor,
    *,
    sign: Sign = "total",
    vote: Vote = "unweighted",
    divide: Divide = "count",
    scale: float = 1.0,
) -> Tensor:
    """Elect a sign at each place and average the entries that have it, (*shape).

    Args:
        vote: ``unweighted`` elects before weighting (PEFT, the paper), ``weighted`` after it
            (mergekit): then a large or negative weight decides which sign wins.

    The other arguments are those of ``elect`` and ``disjoint_mean``.
    """
    if vote not in ("unweighted", "weighted"):
        raise UsageError(f"vote is {vote!r}; it must be unweighted or weighted.")
    voters = stack if vote == "unweighted" else stack * column(weights, stack)
    return disjoint_mean(stack, weights, elect(voters, sign), divide=divide, scale=scale)


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


def column(weights: Tensor, stack: Tensor) -> Tensor:
    """(n,) shaped to multiply (n, *shape), in the stack's dtype and device."""
    return like(weights, stack).reshape(-1, *[1] * (stack.ndim - 1))


def like(x: Tensor, model: Tensor) -> Tensor:
    """``x`` in the library and on the device of ``model``; numbers take its dtype too."""
    if isinstance(model, np.ndarray):
        return x if x.dtype == np.bool_ else x.astype(model.dtype, copy=False)
    torch = library(model)
    x = torch.as_tensor(x, device=model.device)
    return x if x.dtype == torch.bool else x.to(model.dtype)


def cast(x: Tensor, dtype: str) -> Tensor:
    """``x`` as ``float32`` or ``float64``, without a copy where it is that already."""
    if isinstance(x, np.ndarray):
        return x.astype(dtype, copy=False)
    return x.to(getattr(library(x), dtype))


def empty(shape: tuple[int, ...], model: Tensor) -> Tensor:
    """Room for a tensor of this shape in the library, dtype and on the device of ``model``."""
    if isinstance(model, np.ndarray):
        return np.empty(shape, model.dtype)
    return model.new_empty(shape)
