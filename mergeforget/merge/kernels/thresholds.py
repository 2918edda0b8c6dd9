"""Thresholds of a trim: exactly k entries are kept, ties by the lowest index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from mergeforget.errors import DensityError
from mergeforget.merge.kernels.arrays import Tensor, as_torch, library
from mergeforget.merge.kernels.dispatch import Workspace, loops

FEW = 3  # number of ranks up to which partitions are faster than a sort


class Threshold(NamedTuple):
    """The threshold at which a trim keeps exactly k entries of one tensor.

    Attributes:
        value: The k-th largest magnitude; larger magnitudes are kept.
        last: Entries equal to ``value`` are kept up to this flat index; None keeps all.
    """

    value: float
    last: int | None = None

    @property
    def bits(self) -> int:
        """Bits of ``value`` as float32, an integer with the same order as the magnitudes."""
        return int(np.float32(self.value).view(np.int32))

    def within(self, offset: int) -> tuple[int, int]:
        """Return the arguments of ``numba_loops.trim`` for a block at flat index ``offset``."""
        if self.last is None:
            return self.bits - 1, -1
        return self.bits, max(-1, self.last - offset)


class Cuts(NamedTuple):
    """Thresholds for a stack that is a block of larger tensors.

    Attributes:
        thresholds: One threshold per tensor, computed on the whole tensors.
        offset: Flat index of the first entry of the stack in the whole tensors.
    """

    thresholds: Sequence[Threshold]
    offset: int = 0


def check_density(density: float) -> None:
    """Raise DensityError unless ``density`` is in (0, 1]."""
    if not 0 < density <= 1:
        raise DensityError(density)


def kept_count(density: float, numel: int) -> int:
    """Return how many of ``numel`` entries are kept: ``int(density * numel)``, at least one."""
    return min(numel, max(1, int(density * numel)))


def find_cuts(magnitude: Tensor, ranks: Sequence[int]) -> list[Threshold]:
    """Return the thresholds of (numel,) magnitudes that keep k entries, for each k of ``ranks``."""
    numel = len(magnitude)
    tied = [min(numel, k + 1) for k in ranks]  # to detect ties at the threshold
    values = kth_largest(magnitude, [*ranks, *tied])
    cuts = []
    for k, value, following in zip(ranks, values, values[len(ranks) :], strict=False):
        if k == numel or following != value:
            cuts.append(Threshold(value))
            continue
        above = int(library(magnitude).count_nonzero(magnitude > value))
        (at_cut,) = library(magnitude).where(magnitude == value)
        cuts.append(Threshold(value, int(at_cut[k - above - 1])))
    return cuts


def kth_largest(magnitude: Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the k-th largest of (numel,) magnitudes for each k of ``ranks``; k starts at 1."""
    numel = len(magnitude)
    if not isinstance(magnitude, np.ndarray):
        if len(ranks) == 1:
            return [float(as_torch(magnitude).kthvalue(numel - ranks[0] + 1).values)]
        ordered = magnitude.sort().values
        return [float(ordered[numel - k]) for k in ranks]
    bits = magnitude.view(f"i{magnitude.itemsize}")  # same order as floats >= 0, twice as fast
    positions = [numel - k for k in ranks]
    if len(set(positions)) > FEW:
        ordered = np.sort(bits)
    else:
        ordered = bits.copy()
        end = numel  # entries from this index on are larger and sorted
        for position in sorted(set(positions), reverse=True):
            if position == end - 1:  # the maximum of the rest, faster than a partition
                largest = int(ordered[:end].argmax())
                ordered[[position, largest]] = ordered[[largest, position]]
            else:
                ordered[:end].partition(position)
            end = position
    return [float(x) for x in ordered[positions].view(magnitude.dtype)]


def kept_by(magnitude: Tensor, cut: Threshold, offset: int) -> Tensor:
    """Return a mask of the kept entries, (numel,)."""
    if cut.last is None:
        return magnitude >= cut.value
    mask = magnitude > cut.value
    (at_cut,) = library(magnitude).where(magnitude == cut.value)
    mask[at_cut[at_cut + offset <= cut.last]] = True
    return mask


SMALL = 1 << 18  # tensors with at most this many entries are one block
SAMPLE = 1 << 15  # number of sampled entries to bracket a threshold
FEW_ROWS = 256  # number of sampled rows of a tensor that is read row by row
MARGIN = 0.015  # half-width of the bracket in ranks: about five standard deviations of the sample

_room = Workspace()
Rows = Callable[[slice], Tensor]  # reads rows of the n tensors, (n, rows, columns)


class Source(NamedTuple):
    """n tensors of one shape that can be read in blocks of rows.

    Attributes:
        n: Number of tensors.
        shape: (rows, columns)
        rows: Reads a block, (n, rows of the block, columns); it may reuse the same memory.
        sample: Reads rows and columns with a stride, (n, some, some); None uses ``rows``.
        base: Reads rows of the base tensor, (rows of the block, columns).
    """

    n: int
    shape: tuple[int, int]
    rows: Rows
    sample: Callable[[int, int], Tensor] | None = None
    base: Rows | None = None

    @property
    def numel(self) -> int:
        """Number of entries of one tensor."""
        return self.shape[0] * self.shape[1]


def blocks(shape: tuple[int, int], entries: int = SMALL) -> Iterator[slice]:
    """Yield slices of rows with about ``entries`` entries each."""
    step = max(1, entries // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def thresholds_at(source: Source, densities: Sequence[float]) -> list[list[Threshold]]:
    """Return one threshold per tensor for each density, equal to the thresholds of ``trim``."""
    ranks = [kept_count(density, source.numel) for density in densities]
    if source.numel <= SMALL:
        stack = source.rows(slice(0, source.shape[0]))
        thresholds = [find_cuts(abs(tensor.reshape(-1)), ranks) for tensor in stack]
    else:
        thresholds = _search(source, ranks)
    return [[cuts[j] for cuts in thresholds] for j in range(len(ranks))]


class Bracket:
    """Bounds of the k-th largest magnitude of one tensor, and the counts of a pass."""

    def __init__(self, k: int, low: float, high: float) -> None:
        self.k = k
        self._move(low, high)

    def _move(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.above = self.at_high = self.inside_count = self.at_low = 0
        self.inside: list[Tensor] = []

    def count(self, magnitude: Tensor) -> None:
        """Count the magnitudes of one block, (entries,)."""
        quick = loops(magnitude)
        if quick:
            self._count_compiled(magnitude, quick)
            return
        lib = library(magnitude)
        above = int(lib.count_nonzero(magnitude > self.high))
        from_high = int(lib.count_nonzero(magnitude >= self.high))
        self.above += above
        self.at_high += from_high - above
        if self.low < self.high:
            between_bounds = magnitude[(magnitude > self.low) & (magnitude < self.high)]
            self.inside.append(between_bounds)
            self.inside_count += len(between_bounds)
            from_low = int(lib.count_nonzero(magnitude >= self.low))
            self.at_low += from_low - from_high - len(between_bounds)

    def _count_compiled(self, entries: Tensor, quick: ModuleType) -> None:
        """Run ``count`` in one compiled pass."""
        between_bounds = _room.take("inside", (len(entries) + 1,), np.int32)
        above, at_high, count, at_low = quick.census(
            entries.view(np.int32), *self.bits, between_bounds
        )
        self.note(above, at_high, count, at_low, between_bounds)

    @property
    def bits(self) -> tuple[int, int]:
        """Both ends as the bits of their magnitude; -1 is below all."""
        return Threshold(self.low).bits if self.low >= 0 else -1, Threshold(self.high).bits

    def note(self, above: int, at_high: int, between: int, at_low: int, found: Tensor) -> None:
        """Add the counts of a block, and the magnitudes between the ends, int32."""
        self.above += above
        self.at_high += at_high
        if self.low < self.high:
            self.inside.append(found[:between].copy().view(np.float32))
            self.inside_count += between
            self.at_low += at_low

    def cut(self) -> float | None:
        """Return the k-th largest magnitude, or None after moving a bracket that misses it."""
        rank = self.k - self.above
        if rank <= 0:
            self._move(self.high, float("inf"))
            return None
        if rank <= self.at_high:
            return self.high
        rank -= self.at_high
        if rank <= self.inside_count:
            every = library(self.inside[0]).concatenate(self.inside)
            return kth_largest(every, [rank])[0]
        if rank - self.inside_count <= self.at_low:
            return self.low
        self._move(-1.0, self.low)
        return None

    def kept_at(self, value: float) -> tuple[int, bool]:
        """Return how many entries equal to ``value`` are kept, and whether there are more."""
        between_bounds = library(self.inside[0]).concatenate(self.inside) if self.inside else None
        larger = self.above
        equal = self.at_high if value == self.high else 0
        if value < self.high:
            larger += self.at_high
            if value > self.low and between_bounds is not None:
                larger += int((between_bounds > value).sum())
                equal = int((between_bounds == value).sum())
            elif value == self.low:
                larger += self.inside_count
                equal = self.at_low
        return self.k - larger, equal > self.k - larger


def _search(source: Source, ranks: Sequence[int]) -> list[list[Threshold]]:
    """Return the thresholds of each tensor, by passes over the blocks until all are bracketed."""
    brackets = brackets_of(source, ranks)
    values: list[list[float | None]] = [[None] * len(ranks) for _ in brackets]
    while any(value is None for row in values for value in row):
        for part in blocks(source.shape):
            for tensor, row, cuts in zip(source.rows(part), brackets, values, strict=True):
                entries = tensor.reshape(-1)
                magnitude = entries if loops(entries) else abs(entries)
                for bracket, value in zip(row, cuts, strict=True):
                    if value is None:
                        bracket.count(magnitude)
        for row, cuts in zip(brackets, values, strict=True):
            for j, bracket in enumerate(row):
                if cuts[j] is None:
                    cuts[j] = bracket.cut()
    return [
        [_exact(source, i, b, v) for b, v in zip(row, cuts, strict=True) if v is not None]
        for i, (row, cuts) in enumerate(zip(brackets, values, strict=True))
    ]


def brackets_of(source: Source, ranks: Sequence[int]) -> list[list[Bracket]]:
    """For each tensor a bracket of each cut, from a sample of its entries."""
    return [_brackets(x, ranks, source.numel) for x in _sample(source)]


def _sample(source: Source) -> list[Tensor]:
    """Return sorted magnitudes of a sample of each tensor, spread over rows and columns."""
    rows, columns = source.shape
    stride = max(1, int((source.numel / SAMPLE) ** 0.5))
    row_stride = min(stride, rows)
    if source.sample is None:
        row_stride = max(row_stride, rows // FEW_ROWS)  # each row is a separate read
    column_stride = max(1, min(columns, stride * stride // row_stride))
    if source.sample is not None:
        picked = source.sample(row_stride, column_stride)
    else:
        sampled_rows = [
            abs(source.rows(slice(r, r + 1))[:, :, ::column_stride])
            for r in range(0, rows, row_stride)
        ]
        picked = library(sampled_rows[0]).concatenate(sampled_rows, 1)
    ordered = []
    for x in picked:
        magnitude = abs(x.reshape(-1))
        ordered.append(
            np.sort(magnitude) if isinstance(magnitude, np.ndarray) else magnitude.sort()[0]
        )
    return ordered


def _brackets(ordered: Tensor, ranks: Sequence[int], numel: int) -> list[Bracket]:
    count = len(ordered)
    brackets = []
    for k in ranks:
        quantile = 1 - k / numel  # quantile in ascending order
        low = int(np.floor((quantile - MARGIN) * count))
        high = int(np.ceil((quantile + MARGIN) * count))
        brackets.append(
            Bracket(
                k,
                float(ordered[low]) if low >= 0 else -1.0,
                float(ordered[high]) if high < count else float("inf"),
            )
        )
    return brackets


def _exact(source: Source, i: int, bracket: Bracket, value: float) -> Threshold:
    """Return the threshold of tensor ``i``; if entries tie, a pass finds the last kept one."""
    still_kept, has_ties = bracket.kept_at(value)
    if not has_ties:
        return Threshold(value)
    for part in blocks(source.shape):
        magnitude = abs(source.rows(part)[i].reshape(-1))
        (at_cut,) = library(magnitude).where(magnitude == value)
        if len(at_cut) >= still_kept:
            return Threshold(value, part.start * source.shape[1] + int(at_cut[still_kept - 1]))
        still_kept -= len(at_cut)
    raise AssertionError("fewer entries at the threshold than counted")
