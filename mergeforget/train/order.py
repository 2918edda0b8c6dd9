"""Which rows make up each micro-batch: sets alternating, or the forget set chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Place = tuple[str, int]  # set ("" for every set together) and place in the first set


class Alternating(Sampler[list[Place]]):
    """Optimiser steps of one set only: a forget step, its retain step, the next forget step, ...

    The forget set is shuffled anew every epoch and cut into steps of nearly equal size, none larger
    than ``batch_size * accumulation``; every step is cut into ``accumulation`` micro-batches.
    """

    def __init__(self, rows: int, batch_size: int, accumulation: int, seed: int) -> None:
        self.rows, self.batch_size, self.accumulation = rows, batch_size, accumulation
        self.seed, self.epoch = seed, 0
        self.steps = -(-rows // (batch_size * accumulation))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 2 * self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[Place]]:
        order = _shuffled(self.rows, self.seed, self.epoch)
        for step in _evenly(order, self.steps):
            for name in ("forget", "retain"):
                for part in _evenly(step, self.accumulation):
                    yield [(name, i) for i in part or step[:1]]


class Chunked(Sampler[list[Place]]):
    """All epochs over the first chunk of the forget set, then all over the next (SUGD).

    Source: Premptis et al. 2025, arXiv:2503.02443.
    """

    def __init__(
        self, rows: int, chunk: int, epochs: int, batch_size: int, accumulation: int, seed: int
    ) -> None:
        self.chunks = [range(s, min(s + chunk, rows)) for s in range(0, rows, chunk)]
        self.epochs, self.batch_size, self.accumulation = epochs, batch_size, accumulation
        self.seed = seed

    @property
    def chunk_steps(self) -> list[int]:
        """Optimiser steps of each chunk."""
        return [self._steps(chunk) * self.epochs for chunk in self.chunks]

    @property
    def beginnings(self) -> set[int]:
        """Steps, counted from 0, before which a chunk begins and the optimiser is a fresh one."""
        done = self.chunk_steps
        return {sum(done[:i]) for i in range(len(done))}

    def __len__(self) -> int:
        return sum(self.chunk_steps) * self.accumulation

    def __iter__(self) -> Iterator[list[Place]]:
        for number, chunk in enumerate(self.chunks):
            for epoch in range(self.epochs):
                order = _shuffled(len(chunk), self.seed, number * self.epochs + epoch)
                for step in _evenly([chunk[i] for i in order], self._steps(chunk)):
                    for part in _evenly(step, self.accumulation):
                        yield [("", i) for i in part or step[:1]]

    def _steps(self, chunk: range) -> int:
        return -(-len(chunk) // (self.batch_size * self.accumulation))


def _shuffled(size: int, seed: int, turn: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def _evenly(items: list[int], parts: int) -> list[list[int]]:
    """``parts`` runs of items whose sizes differ by one at most; some empty where items are few."""
    cuts = [len(items) * i // parts for i in range(parts + 1)]
    return [items[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
