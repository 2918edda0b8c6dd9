"""Jobs of the writer: tensors that are written while they are computed, and their memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import ResourceError
from mergeforget.merge.checkpoint.reader import SIZES, Checkpoint, TensorInfo

Array = NDArray[Any]


class Block(NamedTuple):
    """Consecutive rows of a tensor to write.

    Attributes:
        raw: Bytes as stored in the file; the memory may be reused for the next block.
        energy: Squared norm of the delta; 0 without a base.
        error: Squared norm of the rounding error in the output dtype.
    """

    raw: Array
    energy: float = 0.0
    error: float = 0.0


@dataclass(frozen=True)
class TensorJob:
    """One tensor to write.

    Attributes:
        blocks: Returns its blocks of rows in order; None copies the bytes of ``source``.
        memory: Upper bound of the memory that it needs, in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[Block]] | None = None
    source: tuple[Checkpoint, TensorInfo] | None = None
    memory: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the written tensor, in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * SIZES[self.dtype]


@dataclass
class Rounding:
    """Rounding error of the delta in the output dtype: sums of squares over all tensors."""

    error: float = 0.0
    energy: float = 0.0

    @property
    def relative(self) -> float | None:
        """``||realised - meant|| / ||meant||`` of the delta; None if there is no delta."""
        return float((self.error / self.energy) ** 0.5) if self.energy else None


@dataclass
class MemoryBudget:
    """Memory that jobs share; a job waits until enough is free."""

    limit: int | None
    used: int = 0
    _turn: threading.Condition = field(default_factory=threading.Condition)

    def check(self, jobs: Sequence[TensorJob]) -> None:
        """Raise ResourceError if a single job exceeds the limit."""
        largest = max(jobs, key=lambda job: job.memory)
        if self.limit is not None and largest.memory > self.limit:
            raise ResourceError(
                f"{largest.name} alone needs {largest.memory / 1e6:.0f} MB, more than "
                f"--max-memory allows ({self.limit / 1e6:.0f} MB). Raise it, or use a method "
                "that works on blocks of rows, such as ties or dare_linear."
            )

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Wait until the bytes are free, and reserve them inside the block."""
        with self._turn:
            self._turn.wait_for(lambda: self.limit is None or self.used + count <= self.limit)
            self.used += count
        try:
            yield
        finally:
            with self._turn:
                self.used -= count
                self._turn.notify_all()
