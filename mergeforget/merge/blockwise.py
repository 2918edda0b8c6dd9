"""Apply a merge method to tensors block by block, at one density or at several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.candidate import Candidate
from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, as_array, empty, library
from mergeforget.merge.kernels.dispatch import Workspace, loops
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sparsify import factors_of_l1, magprune, row_sums
from mergeforget.merge.kernels.thresholds import (
    FEW,
    SMALL,
    Cuts,
    Source,
    Threshold,
    blocks,
    kept_by,
    thresholds_at,
)
from mergeforget.merge.methods import MERGE_METHODS, traits

HELD = 1 << 23  # maximum number of entries that are kept in memory instead of being read twice
_room = Workspace()


def in_memory(stack: Tensor) -> Source:
    """Return a source over a stack in memory, (n, rows, columns)."""
    return Source(
        len(stack), (int(stack.shape[1]), int(stack.shape[2])), lambda part: stack[:, part]
    )


def held(source: Source) -> Source:
    """Return a source that reads its tensors once and keeps them in memory."""
    stack: Tensor = source.rows(slice(0, source.shape[0]))

    def rows(part: slice) -> Tensor:
        if not isinstance(stack, np.ndarray):
            block: Tensor = stack[:, part]
            return block
        buffer: NDArray[Any] = _room.take(
            "block", (source.n, part.stop - part.start, source.shape[1]), stack.dtype
        )
        np.copyto(buffer, stack[:, part])  # contiguous
        return buffer

    return source._replace(rows=rows, sample=lambda down, across: stack[:, ::down, ::across])


def check_device(device: str) -> None:
    """Raise UsageError for a device that torch does not know or this machine does not have."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"--device {device} is not available: {reason}. Omit it to use the CPU."
        ) from error


def on_device(source: Source, device: str) -> Source:
    """Return the tensors as torch tensors on a device; with ``cpu`` they stay numpy arrays."""
    if device == "cpu":
        return source
    import torch

    def moved(read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given: torch.from_numpy(as_array(read(*given))).to(device)

    sample = moved(source.sample) if source.sample else None
    base = moved(source.base) if source.base else None
    return Source(source.n, source.shape, moved(source.rows), sample, base)


def merge_whole(
    source: Source, weights: Tensor, candidates: Sequence[Candidate], name: str
) -> list[Tensor]:
    """Merge whole tensors: one result, (rows, columns), per candidate."""
    results: list[Tensor] = []
    for part, merged in merge_blocks(source, weights, candidates, name):
        if part == slice(0, source.shape[0]):
            return merged
        results = results or [empty(source.shape, x) for x in merged]
        for result, block in zip(results, merged, strict=True):
            result[part] = block
    return results


def merge_blocks(
    source: Source, weights: Tensor, candidates: Sequence[Candidate], name: str
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Merge a source in blocks of rows.

    Args:
        candidates: Candidates that differ only in density; they share the passes over the source.
        name: Name of the tensor; with the seed it determines the random numbers.

    Yields:
        The rows, and one merged block per candidate.
    """
    entry = MERGE_METHODS.get(candidates[0].method)
    if needs_two_passes(source, candidates[0]) and source.n * source.numel <= HELD:
        source = held(source)
    arguments = block_arguments(source, candidates, name)
    cuts = thresholds_of(source, candidates)
    whole = traits(entry.name).whole
    for part in [slice(0, source.shape[0])] if whole else blocks(source.shape):
        stack, offset = source.rows(part), part.start * source.shape[1]
        if source.base is not None and "base_weights" in entry.parameters:
            for one in arguments:
                one["base_weights"] = source.base(part)
        if cuts and len(candidates) > FEW and source.n == 2 and isinstance(stack, np.ndarray):
            yield part, _pair(stack, weights, entry.fn, candidates[0].arguments, cuts, offset)
            continue
        for one, thresholds in zip(arguments, cuts, strict=False):
            one["cuts"] = Cuts(thresholds, offset)
        distinct = arguments if candidates[0].density is not None else arguments[:1]
        merged = [entry.fn(stack, weights, **one) for one in distinct]
        yield part, merged if len(merged) == len(candidates) else merged * len(candidates)


def needs_two_passes(source: Source, candidate: Candidate) -> bool:
    """Return whether thresholds or L1 norms of the whole tensors are needed before the merge."""
    restores_norms = _restores_norms(candidate)
    large = source.sample is None and source.numel > SMALL
    return large and (_trims(candidate) or restores_norms)


def block_arguments(
    source: Source, candidates: Sequence[Candidate], name: str
) -> list[dict[str, Any]]:
    """Return the keyword arguments of the method per candidate, for all blocks of a tensor."""
    takes = MERGE_METHODS.get(candidates[0].method).parameters
    arguments_list = []
    for candidate in candidates:
        arguments: dict[str, Any] = dict(candidate.arguments)
        if candidate.density is not None:
            arguments["density"] = candidate.density
        if "generator" in takes:
            arguments["generator"] = NamedGenerator(candidate.seed, name)
        if _restores_norms(candidate):
            arguments["l1_factors"] = _l1_factors(source, candidate, name)
        arguments_list.append(arguments)
    return arguments_list


def thresholds_of(source: Source, candidates: Sequence[Candidate]) -> list[list[Threshold]]:
    """Return one threshold per tensor for each candidate; empty for a method without trimming."""
    densities = [one.density for one in candidates if one.density is not None]
    return thresholds_at(source, densities) if densities and _trims(candidates[0]) else []


def _trims(candidate: Candidate) -> bool:
    return "cuts" in MERGE_METHODS.get(candidate.method).parameters


def _restores_norms(candidate: Candidate) -> bool:
    drops = traits(candidate.method).drops
    return (
        drops is not None
        and candidate.density is not None
        and _argument(candidate, "rescale") == "l1"
    )


def _argument(candidate: Candidate, name: str) -> Any:
    """Return an argument of the candidate's method, or its default."""
    parameters = MERGE_METHODS.get(candidate.method).parameters
    return candidate.arguments.get(name, parameters[name].default if name in parameters else None)


def _l1_factors(source: Source, candidate: Candidate, name: str) -> Tensor:
    """Return the factors that restore the L1 norms, (n,), from a pass with equal random draws."""
    drops = traits(candidate.method).drops
    assert drops is not None and candidate.density is not None
    generator = NamedGenerator(candidate.seed, name)
    arguments = {"epsilon": _argument(candidate, "epsilon")} if drops is magprune else {}
    before, after = [], []
    for part in blocks(source.shape):
        stack = source.rows(part)
        dropped = drops(stack, candidate.density, generator=generator, rescale="none", **arguments)
        before.append(row_sums(stack))
        after.append(row_sums(dropped))
    join = library(before[0]).concatenate
    return factors_of_l1(join(before, 1), join(after, 1))


def _pair(
    stack: Tensor,
    weights: Tensor,
    merge: Callable[..., Tensor],
    arguments: dict[str, Any],
    cuts: Sequence[Sequence[Threshold]],
    offset: int,
) -> list[Tensor]:
    """Merge two trimmed tensors at many densities.

    Each position has four cases: the entry of the first tensor is kept or not, and so is that of
    the second. The method computes each case once; every density then selects among these results
    bitwise, so the values are exactly those of the method.
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
    """Compute ``_pair`` for all densities in one pass of compiled loops."""
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
