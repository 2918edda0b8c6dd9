"""Samplers of micro-batches: joint, alternating, one set per step, or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class RowIndex(NamedTuple):
    """Index of a row of the first set with its partners, or of a row of a single set.

    Attributes:
        row: Index in the first set; with ``own``, index in the set ``only``.
        only: Name of the single set to read; empty reads every set.
        counts: False for a row that only fills a micro-batch and has weight 0.
        own: True if ``row`` is an index in the set ``only`` itself, not in the first set.
        stage: Stage of layered unlearning, from 0; partners are rows of a later fold.
        epoch: Added to the epoch of the dataset where one pass of a sampler has several.
    """

    row: int
    only: str = ""
    counts: bool = True
    own: bool = False
    stage: int = 0
    epoch: int = 0


class JointSampler(Sampler[list[RowIndex]]):
    """Sample all sets together: the first set is reshuffled every epoch and cut into batches."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the rows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[list[RowIndex]]:
        order = _permuted(self.rows, self.seed + self.epoch)  # equal to the Trainer's own sampler
        for start in range(0, self.rows, self.batch_size):
            yield [RowIndex(i) for i in order[start : start + self.batch_size]]


class AlternatingSampler(Sampler[list[RowIndex]]):
    """Alternate optimiser steps on forget and retain rows.

    The forget set is reshuffled every epoch and cut into steps of nearly equal size, none larger
    than ``batch_size * accumulation``; every step is cut into ``accumulation`` micro-batches.
    """

    def __init__(self, rows: int, batch_size: int, accumulation: int, seed: int) -> None:
        self.rows, self.batch_size, self.accumulation = rows, batch_size, accumulation
        self.seed, self.epoch = seed, 0
        self.steps = -(-rows // (batch_size * accumulation))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the rows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return 2 * self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[RowIndex]]:
        order = _shuffled(self.rows, self.seed, self.epoch)
        for step in _evenly(order, self.steps):
            for name in ("forget", "retain"):
                for part in _evenly(step, self.accumulation):
                    yield [RowIndex(i, name) for i in part] or [RowIndex(step[0], name, False)]


class BySetSampler(Sampler[list[RowIndex]]):
    """Sample steps of one set each, in random order; an epoch has every row of every set once.

    Each set is shuffled and cut into steps once; every epoch shuffles the order of the steps of all
    sets. Each step is cut into ``accumulation`` micro-batches of nearly equal size.

    Args:
        sizes: Rows of each set; refusals to the forget rows are a separate set.
        batch_size: Rows of a micro-batch.

    Source: The published code of iShumei-Chinchunmei, arXiv:2507.16263.
    """

    def __init__(
        self, sizes: Mapping[str, int], batch_size: int, accumulation: int, seed: int
    ) -> None:
        self.accumulation, self.seed, self.epoch = accumulation, seed, 0
        size = batch_size * accumulation
        self.steps: list[tuple[str, list[int]]] = []
        for turn, (name, rows) in enumerate(sizes.items()):
            order = _shuffled(rows, seed, turn)
            self.steps += [(name, order[s : s + size]) for s in range(0, rows, size)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the rows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[RowIndex]]:
        for index in _shuffled(len(self.steps), self.seed + 1, self.epoch):
            name, rows = self.steps[index]
            for part in _evenly(rows, self.accumulation):
                yield [RowIndex(i, name, own=True) for i in part] or [
                    RowIndex(rows[0], name, counts=False, own=True)
                ]


class ChunkedSampler(Sampler[list[RowIndex]]):
    """Process the forget set in chunks: all epochs of one chunk, then those of the next (SUGD).

    Source: Premptis et al. 2025, arXiv:2503.02443.
    """

    def __init__(
        self, rows: int, chunk: int, epochs: int, batch_size: int, accumulation: int, seed: int
    ) -> None:
        starts = range(0, rows, chunk)
        self.chunks: list[Sequence[int]] = [range(s, min(s + chunk, rows)) for s in starts]
        self.epochs, self.batch_size, self.accumulation = epochs, batch_size, accumulation
        self.seed = seed

    @property
    def chunk_steps(self) -> list[int]:
        """Optimiser steps of each chunk."""
        return [self._steps(chunk) * self.epochs for chunk in self.chunks]

    @property
    def beginnings(self) -> set[int]:
        """Steps, counted from 0, before which a chunk begins and the optimiser is reset."""
        steps_by_chunk = self.chunk_steps
        return {sum(steps_by_chunk[:i]) for i in range(len(steps_by_chunk))}

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all epochs are one pass over the sampler."""

    def __len__(self) -> int:
        return sum(self.chunk_steps) * self.accumulation

    def __iter__(self) -> Iterator[list[RowIndex]]:
        for number, chunk in enumerate(self.chunks):
            for epoch in range(self.epochs):
                order = _shuffled(len(chunk), self.seed, number * self.epochs + epoch)
                for step in _evenly([chunk[i] for i in order], self._steps(chunk)):
                    for part in _evenly(step, self.accumulation):
                        yield [self._index(i, number, epoch) for i in part] or [
                            self._index(step[0], number, epoch, counts=False)
                        ]

    def _index(self, row: int, chunk: int, epoch: int, counts: bool = True) -> RowIndex:
        return RowIndex(row, counts=counts)

    def _steps(self, chunk: Sequence[int]) -> int:
        return -(-len(chunk) // (self.batch_size * self.accumulation))


class LayeredSampler(ChunkedSampler):
    """Layered unlearning: stage i samples the first i folds for all epochs before the next.

    Args:
        folds: Fold of each row of the first set, from 0.

    Source: Qian et al. 2025, arXiv:2505.09500, algorithm 1.
    """

    def __init__(
        self, folds: Sequence[int], epochs: int, batch_size: int, accumulation: int, seed: int
    ) -> None:
        super().__init__(len(folds), len(folds), epochs, batch_size, accumulation, seed)
        stages = range(max(folds) + 1)
        self.chunks = [[i for i, f in enumerate(folds) if f <= stage] for stage in stages]

    def _index(self, row: int, stage: int, epoch: int, counts: bool = True) -> RowIndex:
        return RowIndex(row, counts=counts, stage=stage, epoch=stage * self.epochs + epoch)


Order = JointSampler | AlternatingSampler | BySetSampler | ChunkedSampler


class ShardedSampler(Sampler[list[RowIndex]]):
    """Distribute the micro-batches of every optimiser step over the ranks.

    All ranks get the same number of micro-batches; a rank without one gets a row of weight 0. A
    step therefore has the same rows for every world size.
    """

    def __init__(self, order: Order, accumulation: int, rank: int, world_size: int) -> None:
        self.order, self.accumulation = order, accumulation
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        steps, rest = divmod(len(self.order), self.accumulation)
        return steps * self._each(self.accumulation) + self._each(rest)

    def __iter__(self) -> Iterator[list[RowIndex]]:
        parts = iter(self.order)
        while step := list(islice(parts, self.accumulation)):
            rank_items = step[self.rank :: self.world_size]
            yield from rank_items
            if len(rank_items) < self._each(len(step)):
                yield [step[0][0]._replace(counts=False)]

    def _each(self, parts: int) -> int:
        return -(-parts // self.world_size)


def _shuffled(size: int, seed: int, turn: int) -> list[int]:
    return _permuted(size, seed * 1_000_003 + turn)


def _permuted(size: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _evenly(items: list[int], parts: int) -> list[list[int]]:
    """Cut items into ``parts`` consecutive pieces whose sizes differ by at most one."""
    cuts = [len(items) * i // parts for i in range(parts + 1)]
    return [items[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
