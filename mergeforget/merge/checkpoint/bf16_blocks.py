"""Merges of whole models in bfloat16 by compiled passes over the bytes as they are stored.

A weighted sum takes one pass. A method that trims, or that drops at random and restores norms,
takes one pass to find thresholds or norms and one to merge. The results are bit-identical to those
of the method applied block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.candidate import Candidate
from mergeforget.merge.checkpoint.compatible import check_finite_block
from mergeforget.merge.checkpoint.jobs import Block, overflow
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo
from mergeforget.merge.kernels.dispatch import Workspace, loops
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sign_election import DIVISORS, SIGNS, VOTES, scaled
from mergeforget.merge.kernels.sparsify import factors_of_l1
from mergeforget.merge.kernels.thresholds import (
    SMALL,
    Source,
    Threshold,
    brackets_of,
    kept_count,
    kth_largest,
)
from mergeforget.merge.kernels.thresholds import blocks as row_blocks
from mergeforget.merge.methods import MERGE_METHODS, traits

Array = NDArray[Any]
COMPILED = ("ties", "magnitude_prune", "dare_ties", "dare_linear")
HELD = 1 << 26  # bytes of one tensor of all models that are kept in memory rather than read twice

_room = Workspace()


def half_blocks(
    models: Sequence[tuple[Checkpoint, TensorInfo]],
    base: tuple[Checkpoint, TensorInfo] | None,
    candidate: Candidate,
    name: str,
) -> Callable[[], Iterator[Block]] | None:
    """Blocks of a merged tensor, bit-identical to those of the method itself.

    Args:
        models: The models and the tensor's location in each.
        base: The method acts on the differences from it, and the result is added to it.
        name: Name of the tensor; with the seed it determines what a random method draws.

    Returns:
        None where the models are not in bfloat16, the method has no compiled pass, or the compiled
        loops are not loaded.
    """
    stored = [*models, base] if base else [*models]
    if not loops() or any(info.dtype != "BF16" for _, info in stored):
        return None
    tensor = StoredTensor(stored, base is not None)
    if traits(candidate.method).coefficients is scaled:
        weights = scaled(None, np.array(candidate.weights), **candidate.arguments)
        return lambda: _sum(tensor, weights.astype(np.float32))
    how = CompiledMethod.of(candidate) if base else None
    return None if how is None else lambda: _merge(tensor, how, candidate.seed, name)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of all models, and last that of the base if there is one, as stored.

    Attributes:
        raws: All entries, (tensors, entries) uint16, where they are held in memory.
    """

    given: Sequence[tuple[Checkpoint, TensorInfo]]
    with_base: bool
    raws: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.given[-1][1].matrix

    def held(self) -> StoredTensor:
        """Return the tensor in memory if it is small enough."""
        if sum(info.nbytes for _, info in self.given) > HELD:
            return self
        return replace(self, raws=self._read(slice(0, self.shape[0]), "held"))

    def blocks(self) -> Iterator[tuple[slice, Array, int]]:
        """Rows, an array that contains them, (tensors, entries) uint16, and their start in it."""
        for part in row_blocks(self.shape):
            if self.raws is not None:
                yield part, self.raws, part.start * self.shape[1]
            else:
                yield part, self._read(part, "raws"), 0

    def changes(self, part: slice) -> Array:
        """Differences of some rows from the base's, (n, rows, columns) float32."""
        columns = self.shape[1]
        if self.raws is None:
            raws = self._read(part, "raws")
        else:
            raws = self.raws[:, part.start * columns : part.stop * columns]
        return _differences(raws.reshape(len(raws), -1, columns))

    def source(self) -> Source:
        """Return the differences as a source that can be sampled."""

        def sample(down: int, across: int) -> Array:
            assert self.raws is not None
            raws = self.raws.reshape(len(self.raws), *self.shape)
            return _differences(raws[:, ::down, ::across])

        held = None if self.raws is None else sample
        return Source(len(self.given) - 1, self.shape, self.changes, held)

    def check(self, part: slice, sound: bool) -> None:
        """Raise NumericError where a merged block is not finite, naming the input if it is one."""
        if not sound:
            for model, info in self.given:
                check_finite_block(model, info, model.read(info, part))
            raise overflow(self.given[-1][1].name, "BF16")

    def _read(self, part: slice, room: str) -> Array:
        first, stop = part.start * self.shape[1], part.stop * self.shape[1]
        raws = _room.take(room, (len(self.given), stop - first), np.uint16)
        for (model, info), row in zip(self.given, raws, strict=True):
            model.raw(info, first, stop, row.view(np.uint8))
        return raws


def _differences(raws: Array) -> Array:
    """``x - base`` as float32, of (n + 1, rows, columns) uint16 whose last is the base."""
    wide = (raws.astype(np.uint32) << 16).view(np.float32)
    difference: Array = wide[:-1] - wide[-1]
    return difference


def _sum(tensor: StoredTensor, weights: Array) -> Iterator[Block]:
    from mergeforget.merge.kernels import numba_bf16 as quick

    workspace = _room.take("chunks", (3, quick.CHUNK), np.float32)
    for part, raws, first in tensor.blocks():
        out = _room.take("out", (part.stop - part.start, tensor.shape[1]), np.uint16)
        status = quick.half_weighted_sum(
            raws, first, tensor.with_base, weights, workspace, out.reshape(-1)
        )
        tensor.check(part, status[0])
        yield Block(out, status[1], status[2])


@dataclass(frozen=True)
class CompiledMethod:
    """A method that trims or drops, then sums or elects a sign, as the compiled pass takes it.

    Attributes:
        trims: Keep the largest entries; otherwise entries are dropped at random.
        election: See ``numba_bf16.half_merge``.
        weights: One factor for each model, (n,) float32.
    """

    density: float
    trims: bool
    rescale: str
    election: tuple[int, int, int]
    weights: Array
    scale: float

    @classmethod
    def of(cls, candidate: Candidate) -> CompiledMethod | None:
        """None for a method, or a value of an argument, that has no compiled pass."""
        if candidate.method not in COMPILED or candidate.density is None:
            return None
        parameters = MERGE_METHODS.get(candidate.method).parameters
        arguments = {name: one.default for name, one in parameters.items()} | candidate.arguments
        scale, election = 1.0, (0, 0, 0)
        weights: Any = np.array(candidate.weights)
        if "sign" in arguments:
            allowed = (
                (arguments["sign"], SIGNS),
                (arguments["vote"], VOTES),
                (arguments["divide"], DIVISORS),
            )
            if any(value not in known for value, known in allowed):
                return None  # the method names the argument
            sign, vote, divide = (known.index(value) for value, known in allowed)
            scale, election = float(arguments["scale"]), (1 + sign, vote, divide)
        elif "normalize" in arguments:
            more = {key: arguments[key] for key in ("normalize", "scale")}
            weights = scaled(None, weights, **more)
        rescale = str(arguments.get("rescale", "none"))
        if rescale not in ("density", "l1", "none"):
            return None
        trims = traits(candidate.method).drops is None
        return cls(candidate.density, trims, rescale, election, weights.astype(np.float32), scale)


def _merge(tensor: StoredTensor, how: CompiledMethod, seed: int, name: str) -> Iterator[Block]:
    from mergeforget.merge.kernels import numba_bf16 as quick

    n = len(how.weights)
    cuts, spare = np.empty(0, np.int32), np.empty(0, np.int64)
    states, factors, divisor = np.empty((0, 4), np.uint64), np.empty(0, np.float32), 1.0
    words = _room.take("words", (quick.CHUNK // 2,), np.uint64)
    generator, limit = NamedGenerator(seed, name), int(NamedGenerator.limit(how.density))
    masks = np.empty((n, 0), np.uint8)
    if how.density < 1 and how.trims:
        tensor = tensor.held()
        cuts, spare = _cuts(tensor, n, how.density, quick)
    elif how.density < 1:
        states = np.stack([generator.state(i) for i in range(n)])
        divisor = how.density if how.rescale == "density" else 1.0
        if how.rescale == "l1":
            tensor = tensor.held()
            if tensor.raws is not None:
                masks = _room.take("masks", (n, tensor.raws.shape[1]), np.uint8)
            factors = _norm_factors(tensor, states.copy(), limit, words, masks, quick)
    waiting = np.zeros((n, 2), np.uint32)
    workspace = _room.take("chunks", (n + 4, quick.CHUNK), np.float32)
    election = np.array(how.election)
    for part, raws, first in tensor.blocks():
        out = _room.take("out", (part.stop - part.start, tensor.shape[1]), np.uint16)
        status = quick.half_merge(
            raws, first, how.weights, cuts, spare, states, waiting, limit, masks,
            np.float32(divisor), factors, election, np.float32(how.scale), workspace, words,
            out.reshape(-1),
        )  # fmt: skip
        tensor.check(part, status[0])
        yield Block(out, status[1], status[2])


def _norm_factors(
    tensor: StoredTensor, states: Array, limit: int, words: Array, masks: Array, quick: Any
) -> Array:
    """Factors that restore the L1 norm of each model's change, (n,) float32.

    Args:
        masks: Receives which entries are kept, if it has room for the tensor.
    """
    n, (rows, width) = len(states), tensor.shape
    before, after = np.zeros((2, n, rows))
    waiting = np.zeros((n, 2), np.uint32)
    workspace = _room.take("chunks", (n + 4, quick.CHUNK), np.float32)
    for part, raws, first in tensor.blocks():
        sums = np.empty((2, n, part.stop - part.start))
        quick.half_norms(raws, first, width, states, waiting, limit, masks, workspace, words, *sums)
        before[:, part], after[:, part] = sums
    return np.asarray(factors_of_l1(before, after), np.float32)


def _cuts(tensor: StoredTensor, n: int, density: float, quick: Any) -> tuple[Array, Array]:
    """For each model the magnitude from which entries are kept, and how many of those at it."""
    rows, columns = tensor.shape
    rank = kept_count(density, rows * columns)
    cuts, spare = np.empty(n, np.int32), np.full(n, -1, np.int64)

    def note(i: int, value: float, left: int, more: bool) -> None:
        cuts[i] = Threshold(value).bits
        spare[i] = left if more else -1

    if rows * columns <= SMALL:
        for i, change in enumerate(tensor.changes(slice(0, rows))):
            size = abs(change.reshape(-1))
            (value,) = kth_largest(size, [rank])
            left = rank - int(np.count_nonzero(size > value))
            note(i, value, left, int(np.count_nonzero(size == value)) > left)
        return cuts, spare
    waiting = {i: one for i, (one,) in enumerate(brackets_of(tensor.source(), [rank]))}
    sizes = _room.take("sizes", (quick.CHUNK,), np.int32)
    while waiting:
        for part, raws, first in tensor.blocks():
            stop = first + (part.stop - part.start) * columns
            between_bounds = _room.take("inside", (stop - first,), np.int32)
            for i, bracket in waiting.items():
                entries, base = raws[i, first:stop], raws[n, first:stop]
                above, at_high, between, at_low = quick.half_census(
                    entries, base, *bracket.bits, between_bounds, sizes
                )
                bracket.note(above, at_high, between, at_low, between_bounds)
        for i, bracket in list(waiting.items()):
            if (cut := bracket.cut()) is not None:
                note(i, cut, *bracket.kept_at(cut))
                del waiting[i]
    return cuts, spare
