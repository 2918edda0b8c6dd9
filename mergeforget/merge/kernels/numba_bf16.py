"""Loops over bfloat16 as it is stored, compiled by numba: a block of a merge in one pass.

Imported by ``checkpoint.bf16_blocks`` only, after ``dispatch`` has found numba. Values are widened,
merged and rounded in chunks that stay in the first-level cache. Each result is bit-identical to
that of the method on float32: the same operations in the same order, none of them fused.

A block is entries ``first`` to ``first + len(out)`` of ``raws``, (tensors, entries) uint16: the
models, and last the base.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mergeforget.merge.kernels.numba_loops import (
    CHUNK as CHUNK,
)
from mergeforget.merge.kernels.numba_loops import (
    MAGNITUDE,
    add_agreeing,
    compiled,
    reordered,
    vote,
)
from mergeforget.merge.kernels.sparsify import LANES  # row_sums adds in the same order

Array = NDArray[Any]
Floats = NDArray[np.float32]
OVERFLOWS = np.int32(0x7F7F8000)  # magnitude from which a float32 rounds to infinity, or is NaN
GROUP = 16  # magnitudes that are compared with a bracket at once


def reinterpreted(given: Any, wanted: Any, stored: Any) -> Any:
    """Return a function for compiled loops that reinterprets 32 bits as another type.

    Args:
        given, wanted: Types of numba.
        stored: ``wanted`` as a type of LLVM.
    """

    def typed(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], stored)

        return wanted(given), generate

    typed.__name__ = f"{given}_as_{wanted}"
    return intrinsic(typed)


as_float = reinterpreted(types.uint32, types.float32, ir.FloatType())
as_bits = reinterpreted(types.float32, types.uint32, ir.IntType(32))


@compiled
def widened(raw: Any) -> Any:
    """Return a bfloat16, given as uint16, as float32."""
    return as_float(np.uint32(raw) << np.uint32(16))


@compiled
def magnitude(value: Any) -> Any:
    """Return the magnitude of a float32 as int32, which has the same order."""
    return np.int32(as_bits(value)) & MAGNITUDE


@reordered
def squares(x: Floats) -> float:
    """Return the sum of squares of a chunk, (m,)."""
    summed = np.float32(0)
    for j in range(len(x)):
        summed += x[j] * x[j]
    return np.float64(summed)


@compiled
def differences(x: Array, base: Array, out: Floats) -> None:
    """Write ``x - base``, (m,) uint16 -> float32."""
    for j in range(len(out)):
        out[j] = widened(x[j]) - widened(base[j])


@compiled
def store(value: Floats, left: Floats, out: Array) -> bool:
    """Round float32 to bfloat16, (m,) -> uint16.

    Args:
        left: Receives what the rounding adds.

    Returns:
        Whether every rounded value is finite.
    """
    odd = np.int32(0)
    for j in range(len(out)):
        bits = as_bits(value[j])
        odd |= np.int32((np.int32(bits) & MAGNITUDE) >= OVERFLOWS)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        short = np.uint32(bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
        out[j] = np.uint16(short)
        left[j] = as_float(np.uint32(short) << np.uint32(16)) - value[j]
    return bool(odd == 0)


@compiled
def half_weighted_sum(
    raws: Array, first: int, with_base: bool, weights: Floats, room: Floats, out: Array
) -> tuple[bool, float, float]:
    """Write ``base + sum_i w_i (x_i - base)``, or without a base ``sum_i w_i x_i``.

    Args:
        weights: (n,)
        room: (3, CHUNK), of any content.
        out: (m,) uint16.

    Returns:
        Whether the result is finite; the squared norms of the change and of its rounding error.
    """
    n = len(weights)
    energy, error, sound = 0.0, 0.0, True
    for start in range(0, len(out), CHUNK):
        size = min(CHUNK, len(out) - start)
        at = first + start
        change, value, left = room[0, :size], room[1, :size], room[2, :size]
        change[:] = np.float32(0)
        if not with_base:
            for i in range(n):
                x, weight = raws[i, at : at + size], weights[i]
                for j in range(size):
                    change[j] += widened(x[j]) * weight
            sound &= store(change, left, out[start : start + size])
            continue
        base = raws[n, at : at + size]
        for i in range(n):
            x, weight = raws[i, at : at + size], weights[i]
            for j in range(size):
                change[j] += (widened(x[j]) - widened(base[j])) * weight
        for j in range(size):
            value[j] = widened(base[j]) + change[j]
        sound &= store(value, left, out[start : start + size])
        energy += squares(change)
        error += squares(left)
    return sound, energy, error


@compiled
def half_census(
    x: Array, base: Array, low: int, high: int, inside: Array, room: Array
) -> tuple[int, int, int, int]:
    """Count the magnitudes of ``x - base``, (m,) uint16, against a bracket, as ``census`` does.

    Args:
        inside: Receives the magnitudes between the bounds, int32; it has room for all and one more.
        room: (CHUNK,) int32, of any content.
    """
    bottom, top = np.int32(low), np.int32(high)
    above, at_high, at_low = 0, 0, 0
    between: Any = 0
    for start in range(0, len(x), CHUNK):
        size = min(CHUNK, len(x) - start)
        sizes = room[:size]
        one, zero = x[start : start + size], base[start : start + size]
        over: Any = np.int32(0)
        equal: Any = np.int32(0)
        least: Any = np.int32(0)
        for j in range(size):
            found = magnitude(widened(one[j]) - widened(zero[j]))
            sizes[j] = found
            over += np.int32(found > top)
            equal += np.int32(found == top)
            least += np.int32(found == bottom)
        above += over
        at_high += equal
        at_low += least
        for begin in range(0, size // GROUP * GROUP, GROUP):
            some = np.int32(0)
            for k in range(GROUP):
                found = sizes[begin + k]
                some |= np.int32(found > bottom) & np.int32(found < top)
            if some:
                for k in range(GROUP):
                    found = sizes[begin + k]
                    inside[between] = found
                    between += np.int64((found > bottom) & (found < top))
        for j in range(size // GROUP * GROUP, size):
            if bottom < sizes[j] < top:
                inside[between] = sizes[j]
                between += 1
    return above, at_high, between, at_low


@compiled
def cut_chunk(x: Floats, cut: int, spare: Array, i: int) -> None:
    """Zero the entries of a chunk, (m,), whose magnitude is below ``cut``.

    ``spare[i]`` is how many entries equal to the cut are still kept, in order; -1 keeps all.
    """
    limit = np.int32(cut)
    if spare[i] >= 0:
        equal: Any = np.int32(0)
        for j in range(len(x)):
            equal += np.int32(magnitude(x[j]) == limit)
        if equal > spare[i]:
            for j in range(len(x)):
                size = magnitude(x[j])
                kept = size > limit
                if size == limit and spare[i] > 0:
                    kept = True
                    spare[i] -= 1
                x[j] *= np.float32(kept)
            return
        spare[i] -= equal
    for j in range(len(x)):
        x[j] *= np.float32(magnitude(x[j]) >= limit)


@compiled
def draw(state: Array, words: Array) -> None:
    """Fill ``words`` with the next numbers of SFC64, uint64; ``state`` is numpy's, (4,)."""
    a, b, c, counter = state[0], state[1], state[2], state[3]
    for k in range(len(words)):
        word = a + b + counter
        counter += np.uint64(1)
        a = b ^ (b >> np.uint64(11))
        b = c + (c << np.uint64(3))
        c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + word
        words[k] = word
    state[0], state[1], state[2], state[3] = a, b, c, counter


@compiled
def choose(state: Array, waiting: Array, limit: int, words: Array, mask: Array) -> None:
    """Draw which entries of a chunk, (m,) uint8, are kept: those whose number is at most the limit.

    Args:
        waiting: (2,) uint32: whether half a word is left from the chunk before, and its value.
        words: (CHUNK // 2,) uint64, of any content.
    """
    largest = np.uint32(limit)
    begin = 0
    if waiting[0] and len(mask):
        mask[0] = np.uint8(waiting[1] <= largest)
        waiting[0] = np.uint32(0)
        begin = 1
    rest = mask[begin:]
    draw(state, words[: (len(rest) + 1) // 2])
    drawn = words.view(np.uint32)
    for j in range(len(rest)):
        rest[j] = np.uint8(drawn[j] <= largest)
    if len(rest) % 2:
        waiting[0] = np.uint32(1)
        waiting[1] = drawn[len(rest)]


@compiled
def add_lanes(x: Floats, lanes: Array) -> None:
    """Add the magnitude of each entry of a chunk, (m,), to the lane of its place modulo LANES."""
    whole = len(x) // LANES * LANES
    a, b, c, d = lanes[0], lanes[1], lanes[2], lanes[3]
    e, f, g, h = lanes[4], lanes[5], lanes[6], lanes[7]
    for j in range(0, whole, LANES):
        a += np.float64(abs(x[j]))
        b += np.float64(abs(x[j + 1]))
        c += np.float64(abs(x[j + 2]))
        d += np.float64(abs(x[j + 3]))
        e += np.float64(abs(x[j + 4]))
        f += np.float64(abs(x[j + 5]))
        g += np.float64(abs(x[j + 6]))
        h += np.float64(abs(x[j + 7]))
    lanes[0], lanes[1], lanes[2], lanes[3] = a, b, c, d
    lanes[4], lanes[5], lanes[6], lanes[7] = e, f, g, h
    for k in range(len(x) - whole):
        lanes[k] += np.float64(abs(x[whole + k]))


@compiled
def half_norms(
    raws: Array, first: int, width: int, states: Array, waiting: Array, limit: int, masks: Array,
    room: Floats, words: Array, before: Array, after: Array,
) -> None:  # fmt: skip
    """Add up the magnitudes of each row of ``x - base``, (width,), before and after the drop.

    Args:
        masks: Receives which entries are kept, (n, entries of ``raws``) uint8; (n, 0) for none.
        states, waiting, limit, room, words: As in ``half_merge``.
        before, after: Receive the sums, (n, rows) float64.
    """
    n, rows = before.shape
    lanes, chosen = np.empty((2, LANES), np.float64), np.empty(CHUNK, np.uint8)
    for i in range(n):
        for row in range(rows):
            lanes[:] = 0.0
            end = first + (row + 1) * width
            for at in range(end - width, end, CHUNK):
                size = min(CHUNK, end - at)
                x = room[0, :size]
                differences(raws[i, at : at + size], raws[n, at : at + size], x)
                add_lanes(x, lanes[0])
                mask = masks[i, at : at + size] if masks.shape[1] else chosen[:size]
                choose(states[i], waiting[i], limit, words, mask)
                for j in range(size):
                    x[j] *= np.float32(mask[j])
                add_lanes(x, lanes[1])
            before[i, row], after[i, row] = 0.0, 0.0
            for k in range(LANES):
                before[i, row] += lanes[0, k]
                after[i, row] += lanes[1, k]


@compiled
def half_merge(
    raws: Array, first: int, weights: Floats,
    cuts: Array, spare: Array,
    states: Array, waiting: Array, limit: int, masks: Array, divisor: Any, factors: Floats,
    election: Array, scale: Any, room: Floats, words: Array, out: Array,
) -> tuple[bool, float, float]:  # fmt: skip
    """Merge the differences from the base after a trim or a random drop, and add the base.

    Args:
        cuts: Magnitudes from which entries are kept, (n,) int32; empty without a trim.
        spare: How many entries equal to the cut are kept, (n,) int64, see ``cut_chunk``.
        states: Generators of the drop, (n, 4) uint64; empty without one. ``waiting`` is (n, 2)
            uint32 and ``limit`` the largest number drawn that keeps an entry.
        masks: Draws of ``half_norms``, (n, entries of ``raws``) uint8; (n, 0) draws here.
        divisor: Divisor of the kept entries; 1 changes nothing.
        factors: Multipliers of the kept entries, (n,); empty for none.
        election: Three integers: 0 sums, 1 elects by total, 2 by count; whether votes are weighted;
            and the divisor, as in ``consensus``.
        scale: Multiplies the result; 1 for none.
        room: (n + 4, CHUNK), of any content.
        out: (m,) uint16.

    Returns:
        As ``half_weighted_sum``.
    """
    n, one, zero = len(weights), np.float32(1), np.float32(0)
    chosen = np.empty(CHUNK, np.uint8)
    elects, weighted, divide = election[0], election[1], election[2]
    energy, error, sound = 0.0, 0.0, True
    for start in range(0, len(out), CHUNK):
        size = min(CHUNK, len(out) - start)
        at = first + start
        base = raws[n, at : at + size]
        summed, left = room[n, :size], room[n + 1, :size]
        votes, shares = room[n + 2, :size], room[n + 3, :size]
        for i in range(n):
            x = room[i, :size]
            differences(raws[i, at : at + size], base, x)
            if len(cuts):
                cut_chunk(x, cuts[i], spare, i)
            if len(states):
                mask = masks[i, at : at + size] if masks.shape[1] else chosen[:size]
                if not masks.shape[1]:
                    choose(states[i], waiting[i], limit, words, mask)
                for j in range(size):
                    x[j] *= np.float32(mask[j])
            if divisor != one:
                for j in range(size):
                    x[j] /= divisor
            if len(factors):
                for j in range(size):
                    x[j] *= factors[i]
        summed[:] = zero
        if elects:
            votes[:], shares[:] = zero, zero
            for i in range(n):
                vote(room[i, :size], weights[i] if weighted else one, elects == 2, votes)
            for i in range(n):
                add_agreeing(
                    room[i, :size], weights[i] if weighted else one, weights[i],
                    weights[i] if divide == 1 else one, votes, summed, shares,
                )  # fmt: skip
            if divide == 0:
                for j in range(size):
                    summed[j] /= max(shares[j], one)
            elif divide == 1:
                for j in range(size):
                    summed[j] /= shares[j] + np.float32(shares[j] == zero)
        else:
            for i in range(n):
                x, weight = room[i, :size], weights[i]
                for j in range(size):
                    summed[j] += x[j] * weight
        if scale != one:
            for j in range(size):
                summed[j] *= scale
        for j in range(size):
            votes[j] = widened(base[j]) + summed[j]
        sound &= store(votes, left, out[start : start + size])
        energy += squares(summed)
        error += squares(left)
    return sound, energy, error
