"""Loops compiled by numba: one pass over memory where numpy needs many.

Only ``dispatch`` imports this module, after it checked that numba is installed. Results are
bit-identical to numpy's: the same float32 operations in the same order, none of them fused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Array = NDArray[Any]
MAGNITUDE = np.int32(0x7FFFFFFF)  # mask of the sign bit; magnitudes sort as integers
CHUNK = 2048  # entries that fit the first-level cache

F = TypeVar("F", bound=Callable[..., Any])


def compiled(loop: F) -> F:
    """Compile a loop that releases the GIL, without fused or reordered operations."""
    return cast(F, njit(nogil=True, cache=True, error_model="numpy")(loop))


def reordered(loop: F) -> F:
    """Compile a sum whose order does not matter."""
    return cast(F, njit(nogil=True, cache=True, fastmath={"reassoc"})(loop))


@compiled
def widen(raw: Array, out: Array) -> None:
    """Convert bfloat16, (m,) uint16, to float32, (m,) uint32."""
    for i in range(len(raw)):
        out[i] = np.uint32(raw[i]) << np.uint32(16)


@compiled
def narrow(bits: Array, out: Array) -> None:
    """Round float32, (m,) uint32, to bfloat16, (m,) uint16, to nearest even; NaN stays NaN."""
    for i in range(len(bits)):
        x = np.uint32(bits[i])
        rounded = (x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        nan = (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16(0x7FC0) if nan else np.uint16(rounded)


@compiled
def subtract(one: Floats, other: Floats, out: Floats) -> None:
    """Compute ``one - other``, (m,)."""
    for i in range(len(one)):
        out[i] = one[i] - other[i]


@compiled
def all_finite(bits: Array) -> bool:
    """Return whether (m,) float32 values, given as uint32, contain neither NaN nor Inf."""
    odd = np.uint32(0)
    for i in range(len(bits)):
        odd |= np.uint32((bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return bool(odd == 0)


@reordered
def squares(x: Floats) -> float:
    """Return the sum of squares of (m,) in float64, in any order."""
    summed = 0.0
    for j in range(len(x)):
        summed += np.float64(x[j]) * np.float64(x[j])
    return summed


@compiled
def halves_finite(raw: Array) -> bool:
    """Return whether (m,) bfloat16 values, given as uint16, contain neither NaN nor Inf."""
    odd = np.uint16(0)
    for i in range(len(raw)):
        odd |= np.uint16((raw[i] & np.uint16(0x7F80)) == np.uint16(0x7F80))
    return bool(odd == 0)


@compiled
def weighted_sum(stack: Floats, weights: Floats, out: Floats) -> None:
    """Compute ``sum_i w_i x_i`` of (n, m) in order, starting from zero."""
    n, m = stack.shape
    for start in range(0, m, CHUNK):
        summed = out[start : start + CHUNK]
        summed[:] = np.float32(0)
        for i in range(n):
            x, weight = stack[i, start : start + CHUNK], weights[i]
            for j in range(len(summed)):
                summed[j] += x[j] * weight


@compiled
def trim(x: Floats, bits: Array, cut: int, last: int, out: Floats) -> None:
    """Keep ``x``, (m,), if its magnitude exceeds ``cut``, or equals it up to index ``last``."""
    limit = np.int32(cut)
    if last < 0:  # the common case, twice as fast
        for j in range(len(x)):
            out[j] = x[j] * np.float32((bits[j] & MAGNITUDE) > limit)
    else:
        for j in range(len(x)):
            size = bits[j] & MAGNITUDE
            out[j] = x[j] * np.float32((size > limit) | ((size == limit) & (j <= last)))


@compiled
def thin(x: Floats, drawn: Array, limit: int, out: Floats) -> None:
    """Keep ``x``, (m,), if its random number, uint32, does not exceed the limit."""
    largest = np.uint32(limit)
    for j in range(len(x)):
        out[j] = x[j] * np.float32(drawn[j] <= largest)


@compiled
def vote(x: Floats, factor: Any, by_count: bool, votes: Floats) -> None:
    """Add the vote of one tensor on the sign, (m,)."""
    zero = np.float32(0)
    if by_count:
        for j in range(len(x)):
            v = x[j] * factor
            votes[j] += np.float32(v > zero) - np.float32(v < zero)
    else:
        for j in range(len(x)):
            votes[j] += x[j] * factor


@compiled
def add_agreeing(
    x: Floats, factor: Any, weight: Any, share: Any, votes: Floats, summed: Floats, shares: Floats
) -> None:
    """Add the weighted entries that have the elected sign, (m,), and their shares."""
    zero = np.float32(0)
    for j in range(len(x)):
        voter, up = x[j] * factor, votes[j] >= zero
        agrees = np.float32(((voter > zero) & up) | ((voter < zero) & ~up))
        summed[j] += x[j] * weight * agrees
        shares[j] += agrees * share


@compiled
def consensus(
    stack: Floats,
    weights: Floats,
    by_count: bool,
    weighted: bool,
    divide: int,
    out: Floats,
) -> None:
    """Compute ``consensus`` of (n, m), unscaled; ``divide`` is 0 for count, 1 weights, 2 none."""
    n, m = stack.shape
    one, zero = np.float32(1), np.float32(0)
    room = np.empty((2, CHUNK), np.float32)
    for start in range(0, m, CHUNK):
        summed = out[start : start + CHUNK]
        votes, shares = room[0, : len(summed)], room[1, : len(summed)]
        summed[:], votes[:], shares[:] = zero, zero, zero
        for i in range(n):
            x = stack[i, start : start + CHUNK]
            vote(x, weights[i] if weighted else one, by_count, votes)
        for i in range(n):
            x = stack[i, start : start + CHUNK]
            factor, share = weights[i] if weighted else one, weights[i] if divide == 1 else one
            add_agreeing(x, factor, weights[i], share, votes, summed, shares)
        if divide == 0:
            for j in range(len(summed)):
                summed[j] /= max(shares[j], one)
        elif divide == 1:
            for j in range(len(summed)):
                summed[j] /= shares[j] + np.float32(shares[j] == zero)


@compiled
def census(bits: Array, low: int, high: int, inside: Array) -> tuple[int, int, int, int]:
    """Count (m,) signed int32 values whose magnitude is above, in or below a bracket.

    Returns:
        The number above ``high``, equal to it, between, and equal to ``low``. Those between are
        copied to the front of ``inside``, which has m + 1 entries.
    """
    bottom, top = np.int32(low), np.int32(high)
    above: Any = np.int32(0)
    at_high: Any = np.int32(0)
    at_low: Any = np.int32(0)
    for j in range(len(bits)):
        size = bits[j] & MAGNITUDE
        above += np.int32(size > top)
        at_high += np.int32(size == top)
        at_low += np.int32(size == bottom)
    between: Any = 0
    for j in range(len(bits)):
        size = bits[j] & MAGNITUDE
        inside[between] = size
        between += np.int64((size > bottom) & (size < top))
    return above, at_high, between, at_low


@compiled
def pick_by_size(
    x: Array, y: Array, limit: Any, other: Any, a: Array, b: Array, ab: Array, picked: Array
) -> None:
    """Compute the common case of ``pick``, in which the magnitude is sufficient."""
    for j in range(len(x)):
        p = -np.int32((x[j] & MAGNITUDE) > limit)  # 0 or all bits
        q = -np.int32((y[j] & MAGNITUDE) > other)
        picked[j] = (p & ~q & a[j]) | (q & ~p & b[j]) | (p & q & ab[j])


@compiled
def pick(
    one: Array,
    two: Array,
    cuts: Array,
    lasts: Array,
    first: Array,
    second: Array,
    both: Array,
    out: Array,
) -> None:
    """Select one of four results per density and position by which of two entries are kept.

    Args:
        one, two: Entries of the two tensors, (m,) int32; also ``first``, ``second`` and ``both``.
        cuts, lasts: Thresholds of both at each density, as in ``trim``, (densities, 2) int32 and
            int64.
        first, second, both: Results if only the first is kept, only the second, or both.
        out: (densities, m) int32.
    """
    m = len(one)
    for start in range(0, m, CHUNK):
        stop = min(start + CHUNK, m)
        x, y = one[start:stop], two[start:stop]
        a, b, ab = first[start:stop], second[start:stop], both[start:stop]
        for d in range(len(out)):
            picked = out[d, start:stop]
            if max(lasts[d, 0], lasts[d, 1]) < 0:
                pick_by_size(x, y, cuts[d, 0], cuts[d, 1], a, b, ab, picked)
                continue
            for j in range(len(x)):
                size, other = x[j] & MAGNITUDE, y[j] & MAGNITUDE
                p = -np.int32(
                    (size > cuts[d, 0]) | ((size == cuts[d, 0]) & (start + j <= lasts[d, 0]))
                )
                q = -np.int32(
                    (other > cuts[d, 1]) | ((other == cuts[d, 1]) & (start + j <= lasts[d, 1]))
                )
                picked[j] = (p & ~q & a[j]) | (q & ~p & b[j]) | (p & q & ab[j])
