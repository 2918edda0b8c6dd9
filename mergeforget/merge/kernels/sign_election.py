"""Weighted sums of n tensors: plain, by inner products, or by elected sign.

Every function takes the stacked tensors of one module, (n, *shape), numpy or torch; inputs are
not modified. Sums over the n tensors run from the first to the last, as in torch, so both libraries
give bit-identical results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, as_array, column, like, to_dtype
from mergeforget.merge.kernels.dispatch import loops
from mergeforget.merge.kernels.thresholds import blocks

SIGNS, DIVISORS = ("total", "count"), ("count", "weights", "none")
VOTES = ("unweighted", "weighted")

Sign = Literal["total", "count"]
Vote = Literal["unweighted", "weighted"]
Divide = Literal["count", "weights", "none"]


def total(stack: Tensor) -> Tensor:
    """Return the sum over the n tensors in order, starting from zero (so no -0.0 remains)."""
    summed: Tensor = stack[0] + 0.0
    for tensor in stack[1:]:
        summed += tensor
    return summed


def weighted_sum(
    stack: Tensor, weights: Tensor, *, normalize: bool = False, scale: float = 1.0
) -> Tensor:
    """Return ``scale * sum_i w_i x_i``; ``normalize`` divides by ``sum_i w_i`` unless it is 0."""
    factors = scaled(None, weights, normalize=normalize, scale=scale)
    quick = loops(stack)
    if not quick:
        if not isinstance(stack, np.ndarray) or factors.dtype.kind != "f":
            return total(stack * column(factors, stack))
        multipliers = like(factors, stack)
        added: Tensor = stack[0] * multipliers[0]
        added += 0.0  # no -0.0 remains, as in ``total``
        term = np.empty_like(added)
        for tensor, multiplier in zip(stack[1:], multipliers[1:], strict=True):
            added += np.multiply(tensor, multiplier, out=term)
        return added
    summed = np.empty(stack.shape[1:], np.float32)
    quick.weighted_sum(_flat(stack), like(factors, stack), summed.reshape(-1))
    return summed


def scaled(gram: Any, weights: Tensor, *, normalize: bool = False, scale: float = 1.0) -> Tensor:
    """Return the factor of each input of a weighted sum, (n,), independent of the inputs."""
    return weights * scale_of(weights, normalize, scale)


def scale_of(weights: Tensor, normalize: bool, scale: float) -> float:
    """Return ``scale``; ``normalize`` divides it by the sum of the weights unless it is 0."""
    shares = float(weights.sum()) if normalize else 1.0
    return scale / (shares if abs(shares) >= 1e-8 else 1.0)


def fractions(weights: Any) -> NDArray[np.float64]:
    """Return the weights divided by their sum.

    Raises:
        UsageError: The sum is 0.

    >>> fractions([3.0, 1.0]).tolist()
    [0.75, 0.25]
    """
    shares = np.asarray(weights, np.float64)
    if abs(shares.sum()) < 1e-8 * abs(shares).sum():
        raise UsageError(
            f"The weights {', '.join(f'{w:g}' for w in shares)} add up to 0, and this method "
            "divides them by their sum. Give other weights."
        )
    divided: NDArray[np.float64] = shares / shares.sum()
    return divided


def elect(stack: Tensor, sign: Sign = "total") -> Tensor:
    """Return a mask of the entries that have the elected sign of their position.

    Args:
        stack: (n, *shape), trimmed.
        sign: ``total`` elects the sign of the sum, ``count`` that of the sum of signs; a sum of
            zero counts as positive.

    Returns:
        Boolean, (n, *shape); False for zero entries.

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


def disjoint_mean(
    stack: Tensor,
    weights: Tensor,
    agree: Tensor,
    *,
    divide: Divide = "count",
    scale: float = 1.0,
) -> Tensor:
    """Average the weighted entries that agree with the elected sign, position by position.

    Args:
        stack: (n, *shape)
        weights: (n,)
        agree: Boolean, (n, *shape), from ``elect``.
        divide: Divide by the number that agree, at least 1 (PEFT, the paper); by the sum of their
            weights, or 1 if it is 0 (mergekit's ``normalize``); or not at all.
        scale: Multiplier of the result (mergekit's ``lambda``).

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
    """Elect a sign at each position and average the entries that have it, (*shape).

    Args:
        vote: ``unweighted`` elects before weighting (PEFT, the paper); ``weighted`` elects after it
            (mergekit), so a large or negative weight influences the sign.

    The other arguments are those of ``elect`` and ``disjoint_mean``.
    """
    if vote not in VOTES:
        raise UsageError(f"vote is {vote!r}; it must be unweighted or weighted.")
    quick = loops(stack)
    if quick and sign in SIGNS and divide in DIVISORS:
        merged = np.empty(stack.shape[1:], np.float32)
        how = sign == "count", vote == "weighted", DIVISORS.index(divide)
        quick.consensus(_flat(stack), like(weights, stack), *how, merged.reshape(-1))
        return merged if scale == 1 else merged * scale
    if isinstance(stack, np.ndarray) and sign == "total" and divide in DIVISORS:
        return _agreeing_mean(stack, like(weights, stack), vote == "weighted", divide, scale)
    voters = stack if vote == "unweighted" else stack * column(weights, stack)
    return disjoint_mean(stack, weights, elect(voters, sign), divide=divide, scale=scale)


def _agreeing_mean(
    stack: Tensor, weights: Tensor, weighted: bool, divide: Divide, scale: float
) -> Tensor:
    """Compute ``disjoint_mean`` of ``elect`` with fewer temporaries, bit-identically.

    With s the elected sign, the agreeing entries are exactly ``s * max(s * x, 0)``.
    """
    agreeing = np.empty(stack.shape[1:], stack.dtype)
    voted = total(stack) if not weighted else weighted_sum(stack, weights)
    elected = np.copysign(1, voted, dtype=stack.dtype)
    summed = np.zeros_like(agreeing)
    shares = np.zeros(
        agreeing.shape, np.int8 if divide == "count" and len(stack) < 128 else agreeing.dtype
    )
    for tensor, weight in zip(stack, weights, strict=True):
        np.multiply(tensor, elected, out=agreeing)
        if weighted and weight < 0:  # the entry agrees if its weighted value has the sign
            np.minimum(agreeing, 0, out=agreeing)
        else:
            np.maximum(agreeing, 0, out=agreeing)
        agree = agreeing != 0 if not weighted else agreeing * weight != 0
        if divide == "count":
            shares += agree
        elif divide == "weights":
            shares += agree * weight
        agreeing *= elected
        agreeing *= weight
        summed += agreeing
    if divide == "count":
        summed /= np.maximum(shares, 1, out=shares)
    elif divide == "weights":
        shares += shares == 0
        summed /= shares
    return summed if scale == 1 else summed * scale


def _flat(stack: Tensor) -> Tensor:
    """Reshape (n, *shape) to (n, entries)."""
    return stack.reshape(len(stack), -1)


Gram = Callable[[], NDArray[np.float64]]


def combine(stack: Tensor, coefficients: Callable[[Gram], Any]) -> Tensor:
    """Return ``sum_i c_i x_i``, with c computed from the inner products of the n tensors."""
    return weighted_sum(stack, coefficients(lambda: gram(stack)))


def gram(stack: Tensor) -> NDArray[np.float64]:
    """Return the inner products of n tensors, (n, n), in float64, summed over blocks of rows.

    In float32, directions that nearly cancel would have a length of rounding errors, by which
    spherical means divide.
    """
    rows = stack.reshape(len(stack), -1, stack.shape[-1])
    products = np.zeros((len(stack), len(stack)))
    for part in blocks((int(rows.shape[1]), int(rows.shape[2]))):
        wide = to_dtype(rows[:, part].reshape(len(stack), -1), "float64")
        products += as_array(wide @ wide.T)
    return products


def arc(t: float, cosine: float, *, line: bool) -> NDArray[np.float64]:
    """Return the two coefficients of a slerp, or of linear interpolation."""
    if line:
        return np.array([1 - t, t])
    angle = np.arccos(np.clip(cosine, -1, 1))
    sines: NDArray[np.float64] = np.sin([(1 - t) * angle, t * angle]) / np.sin(angle)
    return sines
