"""Applies a method to a source of tensors block by block, for one density or for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mergeforget.candidate import Candidate
from mergeforget.merge.kernels.arrays import Tensor, empty, library
from mergeforget.merge.kernels.dispatch import Room, loops
from mergeforget.merge.kernels.rng import Chance
from mergeforget.merge.kernels.sparsify import KnownL1, l1_factors, magprune, row_sums
from mergeforget.merge.kernels.thresholds import (
    FEW,
    SMALL,
    Source,
    Threshold,
    at,
    blocks,
    kept_by,
    known_densities,
)
from mergeforget.merge.methods import MERGE_METHODS, traits

HELD = 1 << 23  # entries of all n tensors that are kept in memory rather than read twice
_room = Room()


def in_memory(stack: Tensor) -> Source:
    """A stack that is there already, (n, rows, columns)."""
    return Source(
        len(stack), (int(stack.shape[1]), int(stack.shape[2])), lambda part: stack[:, part]
    )


def held(source: Source) -> Source:
    """The same, read once and kept in memory."""
    stack = source.rows(slice(0, source.shape[0]))

    def rows(part: slice) -> Tensor:
        if not isinstance(stack, np.ndarray):
            return stack[:, part]
        room = _room.take("block", (source.n, part.stop - part.start, source.shape[1]), stack.dtype)
        np.copyto(room, stack[:, part])  # contiguous
        return room

    return Source(source.n, source.shape, rows, lambda down, across: stack[:, ::down, ::across])


def merge_whole(
    source: Source, weights: Tensor, candidates: Sequence[Candidate], name: str
) -> list[Tensor]:
    """The method on whole tensors: one result, (rows, columns), for each candidate's density."""
    results: list[Tensor] = []
    for part, merged in merge_blocks(source, weights, candidates, name):
        if part == slice(0, source.shape[0]):
            return merged
        results = results or [empty(source.shape, x) for x in merged]
        for whole, block in zip(results, merged, strict=True):
            whole[part] = block
    return results


def merge_blocks(
    source: Source, weights: Tensor, candidates: Sequence[Candidate], name: str
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Merge a source in blocks of rows.

    Args:
        candidates: they differ in their density only; they share the passes over the source.
        name: of the tensor; with the seed it decides what a random method draws.

    Yields:
        The rows, and one merged block for each candidate.
    """
    first = candidates[0]
    entry = MERGE_METHODS.get(first.method)
    draws, takes_density = "chance" in entry.parameters, "density" in entry.parameters
    known = traits(first.method)
    densities = [one.density for one in candidates if one.density is not None]
    given: list[dict[str, Any]] = [dict(first.arguments) for _ in candidates]
    if draws:
        for one in given:
            one["chance"] = Chance(first.seed, name)
    trims = takes_density and bool(densities) and known.trims
    rescales = known.drops is not None and _argument(first, "rescale") == "l1"
    twice = (trims or rescales) and source.sample is None and source.numel > SMALL
    if twice and source.n * source.numel <= HELD:
        source = held(source)
    if rescales:
        for one, density in zip(given, densities, strict=True):
            one["rescale"] = _known_l1(source, first, density, name)
    cuts = known_densities(source, densities) if trims else []
    every = slice(0, source.shape[0])
    for part in [every] if known.whole else blocks(source.shape):
        stack = source.rows(part)
        for j, density in enumerate(densities):
            given[j]["density"] = at(density, cuts[j], part, source.shape[1]) if trims else density
        if trims and len(densities) > FEW and source.n == 2 and isinstance(stack, np.ndarray):
            offset = part.start * source.shape[1]
            yield part, _pair(stack, weights, entry.fn, first.arguments, cuts, offset)
        elif densities:
            yield part, [entry.fn(stack, weights, **one) for one in given]
        else:
            yield part, [entry.fn(stack, weights, **given[0])] * len(candidates)


def _argument(candidate: Candidate, name: str) -> Any:
    """An argument of the candidate's method, or its default."""
    parameters = MERGE_METHODS.get(candidate.method).parameters
    return candidate.arguments.get(name, parameters[name].default if name in parameters else None)


def _known_l1(source: Source, candidate: Candidate, density: float, name: str) -> KnownL1:
    """What makes up for a drop, from a pass that draws what the merge will draw."""
    drops = traits(candidate.method).drops
    assert drops is not None
    chance = Chance(candidate.seed, name)
    arguments = {"epsilon": _argument(candidate, "epsilon")} if drops is magprune else {}
    before, after = [], []
    for part in blocks(source.shape):
        stack = source.rows(part)
        kept = drops(stack, density, chance=chance, rescale="none", **arguments)
        before.append(row_sums(stack))
        after.append(row_sums(kept))
    join = library(before[0]).concatenate
    return KnownL1(l1_factors(join(before, 1), join(after, 1)))


def _pair(
    stack: Tensor,
    weights: Tensor,
    merge: Callable[..., Tensor],
    arguments: dict[str, Any],
    cuts: Sequence[Sequence[Threshold]],
    offset: int,
) -> list[Tensor]:
    """Merge two trimmed tensors at many densities.

    At each place there are four cases: an entry of the first is kept or not, and one of the
    second. The method is asked for each case once; every density then picks among the answers, as
    bits, so that they are those of the method to the last one.
    """
    only = _room.take("only", (2, *stack.shape), stack.dtype)
    only[0, 0], only[0, 1], only[1, 0], only[1, 1] = stack[0], 0, 0, stack[1]
    cases = [merge(x, weights, density=1.0, **arguments) for x in (*only, stack)]
    quick = loops(*cases, stack)
    if quick:
        return _picked(stack, cases, cuts, offset, quick)
    bits = f"i{stack.itemsize}"
    first, second, both = (x.view(bits) for x in cases)
    both = both ^ first ^ second
    magnitudes = [abs(x.reshape(-1)) for x in stack]
    results = []
    for pair in cuts:
        kept = [kept_by(m, cut, offset) for m, cut in zip(magnitudes, pair, strict=True)]
        one, two = (-(x.view(np.int8).astype(bits)).reshape(first.shape) for x in kept)  # 0 or ~0
        merged = both & one
        merged &= two
        one &= first
        merged ^= one
        two &= second
        merged ^= two
        results.append(merged.view(stack.dtype))
    return results


def _picked(
    stack: Tensor,
    cases: Sequence[Tensor],
    cuts: Sequence[Sequence[Threshold]],
    offset: int,
    quick: Any,
) -> list[Tensor]:
    """The same for all densities, by one pass of compiled loops."""
    bounds = np.array([[cut.within(offset) for cut in pair] for pair in cuts])
    merged = np.empty((len(cuts), *cases[0].shape), np.float32)
    quick.pick(
        *(x.reshape(-1).view(np.int32) for x in stack),
        bounds[:, :, 0].astype(np.int32),
        bounds[:, :, 1],
        *(x.reshape(-1).view(np.int32) for x in cases),
        merged.reshape(len(cuts), -1).view(np.int32),
    )
    return list(merged)
