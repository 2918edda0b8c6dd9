"""Pair forget rows with rows of other sets, collate them, and fuse micro-batches into passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from mergeforget.data.batches import Batch, fuse, pack, pad
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import gather, sharded
from mergeforget.recipe import Training
from mergeforget.train.samplers import (
    RowIndex,
)

REFUSAL = "refusal"  # the set of refusals to the forget rows' prompts

Item = dict[str, list[Encoded]]


class PairedRows(Dataset[Item]):
    """Item i is row i of the first set together with rows of every other set.

    Partners are drawn from a stream of permutations of the other set, so each of its rows is used
    equally often. They depend only on (seed, epoch, i), so a resumed run has the same pairs. The
    refusal to row i is always included.

    Args:
        partners: Number of rows of every other set per row of the first.
        same_index: Use row i modulo the set's size (ZJUKLAB's code).
        cyclic: Use the other set's rows in order, repeatedly (SUGD).
        staged: Use only rows of a later fold than the stage of the index (layered unlearning).
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Encoded]],
        *,
        seed: int,
        same_index: bool = False,
        partners: int = 1,
        cyclic: bool = False,
        staged: bool = False,
    ) -> None:
        self.sets = dict(sets)
        self.first = next(iter(self.sets))
        self.seed, self.same_index, self.epoch = seed, same_index, 0
        self.partners, self.cyclic, self.staged = partners, cyclic, staged
        self._orders: dict[tuple[int, int], list[int]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the partners."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sets[self.first])

    def __getitem__(self, place: int | RowIndex) -> Item:
        place = RowIndex(place) if isinstance(place, int) else place
        if place.own:
            item = {place.only: [self.sets[place.only][place.row]]}
        else:
            names = [n for n in self.sets if not place.only or place.only in (n, self._beside(n))]
            item = {n: [self.sets[n][j] for j in self._places(n, place)] for n in names}
        if place.counts:
            return item
        return {name: [replace(row, weight=0.0) for row in rows] for name, rows in item.items()}

    def _beside(self, name: str) -> str:
        """Return the set to which a set belongs: refusals belong to the forget rows."""
        return self.first if name == REFUSAL else name

    def _places(self, name: str, place: RowIndex) -> list[int]:
        if name in (self.first, REFUSAL):
            return [place.row]
        starts = (place.row * self.partners + j for j in range(self.partners))
        return [self._partner(name, i, place) for i in starts]

    def _partner(self, name: str, i: int, index: RowIndex) -> int:
        pool = self._pool(name, index.stage)
        size = len(pool)
        if self.same_index or self.cyclic:
            return i % size
        epoch = self.epoch + index.epoch
        turn, place = divmod(epoch * len(self) * self.partners + i, size)
        return pool[self._order(size, turn)[place]]

    def _pool(self, name: str, stage: int) -> Sequence[int]:
        """Return the rows of a set that may be partners: in stages, those of later folds only."""
        every = self.sets[name]
        if not self.staged or name != "retain":
            return range(len(every))
        return [i for i, one in enumerate(every) if one.fold > stage]

    def _order(self, size: int, turn: int) -> list[int]:
        if (size, turn) not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            self._orders[size, turn] = torch.randperm(size, generator=generator).tolist()
        return self._orders[size, turn]


@dataclass(frozen=True)
class Collate:
    """Collate items of ``PairedRows`` into one Batch per set.

    Attributes:
        length: Length of every padded row in tokens; None pads to the longest row.
    """

    kinds: tuple[int, ...]
    padding: str
    pad_id: int
    length: int | None = None

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        names = items[0]
        return {name: self._batch([r for item in items for r in item[name]]) for name in names}

    def _batch(self, rows: list[Encoded]) -> Batch:
        if self.padding == "none":
            return pack(rows, self.kinds)
        return pad(rows, self.kinds, self.pad_id, side=self.padding, length=self.length)


def collate_of(kinds: tuple[int, ...], plan: Training | None, pad_id: int) -> Collate:
    """Return the collator of a training; without a plan, rows are packed."""
    if plan is None:
        return Collate(kinds, "none", pad_id)
    whole = plan.tokens.pad_to == "max_length"
    return Collate(kinds, plan.tokens.padding, pad_id, plan.max_length if whole else None)


@dataclass
class Share:
    """Batches of one pass, with the totals of their optimiser step.

    A share is one micro-batch or several fused ones. It has no batches if it was fused into a later
    share.
    """

    batches: dict[str, Batch]
    rows: dict[str, float]
    tokens: dict[str, dict[int, float]]

    def totals(self, name: str) -> dict[str, Any]:
        """Return the totals of a set, under the names of ``TokenOutputs``."""
        return {"row_total": self.rows.get(name), "token_total": self.tokens.get(name)}


def fuse_shares(shares: list[Share], budget: int) -> list[Share]:
    """Fuse consecutive micro-batches into the last of each group; the others become empty.

    The Trainer counts micro-batches, so their number must not change. The ranks of a sharded
    model must run the same passes, so they form the same groups.
    """
    sizes = [sum(b.tokens for b in share.batches.values()) for share in shares]
    if sharded():
        sizes = [max(each) for each in zip(*gather(sizes), strict=True)]
    groups: list[list[Share]] = []
    room = 0
    for share, size in zip(shares, sizes, strict=True):
        packed = all(b.attention_mask is None for b in share.batches.values())
        if size > room or not packed or share.batches.keys() != groups[-1][0].batches.keys():
            groups.append([])
            room = budget
        groups[-1].append(share)
        room -= size
    fused = []
    for group in groups:
        fused += [replace(share, batches={}) for share in group[:-1]]
        last = group[-1]
        if len(group) > 1:
            joined = {n: fuse([share.batches[n] for share in group]) for n in last.batches}
            last = replace(last, batches=joined)
        fused.append(last)
    return fused
