"""Where a trim cuts a tensor: exactly k entries, the lowest index first among equal magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mergeforget.errors import DensityError
from mergeforget.merge.kernels.arrays import Tensor, library

FEW = 3  # ranks up to which partitions are faster than one sort


class Cut(NamedTuple):
    """Where a trim cuts one tensor: it keeps exactly k entries.

    Attributes:
        value: the k-th largest magnitude; larger ones are kept.
        last: of the entries at ``value``, those up to this flat index are kept; None for all.
    """

    value: float
    last: int | None = None

    @property
    def bits(self) -> int:
        """``value`` as float32, read as an integer, which keeps the order of magnitudes."""
        return int(np.float32(self.value).view(np.int32))

    def within(self, offset: int) -> tuple[int, int]:
        """As ``compiled.trim`` takes it, for a block that begins at flat index ``offset``."""
        if self.last is None:
            return self.bits - 1, -1
        return self.bits, max(-1, self.last - offset)


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


def check_density(density: float) -> None:
    """Raise DensityError unless ``density`` is in (0, 1]."""
    if not 0 < density <= 1:
        raise DensityError(density)


def kept_count(density: float, numel: int) -> int:
    """How many of ``numel`` entries a density keeps: ``int(density * numel)``, at least one."""
    return min(numel, max(1, int(density * numel)))


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
