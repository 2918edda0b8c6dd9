"""The rows of a training: which forget row meets which retain row, in every epoch the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from mergeforget.data.batches import Batch, pack, pad
from mergeforget.data.tokens import Encoded


class PairedRows(Dataset[dict[str, Encoded]]):
    """Item i is row i of the first set with one row of every other set.

    The partner is drawn from a stream of permutations of the other set, so that each of its rows is
    used equally often, and depends only on (seed, epoch, i): a resumed run meets the same pairs.
    """

    def __init__(
        self, sets: Mapping[str, Sequence[Encoded]], *, seed: int, same_index: bool = False
    ) -> None:
        self.sets = dict(sets)
        self.first = next(iter(self.sets))
        self.seed, self.same_index, self.epoch = seed, same_index, 0
        self._orders: dict[tuple[str, int], list[int]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the beginning of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sets[self.first])

    def __getitem__(self, i: int) -> dict[str, Encoded]:
        item = {}
        for name, rows in self.sets.items():
            item[name] = rows[i] if name == self.first else rows[self._partner(name, i)]
        return item

    def _partner(self, name: str, i: int) -> int:
        size = len(self.sets[name])
        if self.same_index:
            return i % size
        turn, place = divmod(self.epoch * len(self) + i, size)
        return self._order(name, turn)[place]

    def _order(self, name: str, turn: int) -> list[int]:
        if (name, turn) not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            self._orders[name, turn] = torch.randperm(
                len(self.sets[name]), generator=generator
            ).tolist()
        return self._orders[name, turn]


class Collate:
    """Makes one Batch for each set from the items of a PairedRows."""

    def __init__(self, kinds: tuple[int, ...], padding: str, pad_id: int) -> None:
        self.kinds, self.padding, self.pad_id = kinds, padding, pad_id

    def __call__(self, items: Sequence[dict[str, Encoded]]) -> dict[str, Any]:
        return {name: self._batch([item[name] for item in items]) for name in items[0]}

    def _batch(self, rows: list[Encoded]) -> Batch:
        if self.padding == "none":
            return pack(rows, self.kinds)
        return pad(rows, self.kinds, self.pad_id, side=self.padding)
