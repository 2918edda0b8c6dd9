"""Jobs of the writer: tensors that are encoded and written while they are computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import NumericError, ResourceError
from mergeforget.merge.checkpoint.reader import SIZES, Checkpoint, TensorInfo
from mergeforget.merge.kernels.dispatch import Workspace, loops
from mergeforget.tensors import FLOATS, NAMES, stored, to_array

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
                f"{largest.name} alone needs {largest.memory / 1e6:.3g} MB, more than "
                f"--max-memory allows ({self.limit / 1e6:.3g} MB). Raise it, or use a method "
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


_room = Workspace()


def add_change(origin: Array, change: Array, dtype: str, name: str) -> Block:
    """Encode ``origin + change``, (rows, columns), in ``dtype``.

    Raises:
        NumericError: As in ``encoded``.
    """
    if loops(origin, change) and dtype in ("BF16", "F32"):
        values = np.add(origin, change, out=_room.take("sum", change.shape, np.float32))
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            values = origin + change
    raw = encoded(values, dtype, name)
    energy = _squares(change)
    if dtype in ("F32", "F64"):
        return Block(raw, energy)
    return Block(raw, energy, _squares(_decoded(raw, dtype) - values))


def encoded(values: Array, dtype: str, name: str, *, carried: bool = False) -> Array:
    """Encode the values of a tensor in ``dtype``.

    Args:
        name: Name of the tensor, for messages.
        carried: The values are copied from a checkpoint, including NaN and Inf.

    Raises:
        NumericError: A value is NaN or Inf, or too large for the dtype.
    """
    quick = loops(values) if dtype == "BF16" else None
    if quick:
        raw = _room.take("raw", values.shape, np.uint16)
        quick.narrow(values.reshape(-1).view(np.uint32), raw.reshape(-1))
    else:
        raw = stored(values, dtype, name)
    if dtype in FLOATS and not bits_are_finite(raw, dtype):
        if not (carried and not np.isfinite(values).all()):
            raise overflow(name, dtype)
    return raw


def bits_are_finite(raw: Array, dtype: str) -> bool:
    """Return whether encoded values of ``dtype`` contain neither NaN nor Inf."""
    if dtype == "BF16":
        quick = loops()
        if quick and raw.flags.c_contiguous:
            return bool(quick.halves_finite(raw.reshape(-1)))
        return not ((raw & 0x7F80) == 0x7F80).any()
    quick = loops(raw)
    if quick:
        return bool(quick.all_finite(raw.reshape(-1).view(np.uint32)))
    return bool(np.isfinite(raw).all())


def overflow(name: str, dtype: str) -> NumericError:
    """Return the error of a merged tensor that overflows its dtype."""
    return NumericError(
        f"The merged {name} overflows {NAMES[dtype]} or is NaN, so it was not written. Use smaller "
        "weights or --dtype float32, or check the inputs for extreme values."
    )


def _decoded(raw: Array, dtype: str) -> Array:
    if dtype == "BF16" and loops():
        wide = _room.take("wide", raw.shape, np.uint32)
        quick = loops()
        assert quick
        quick.widen(raw.reshape(-1), wide.reshape(-1))
        return wide.view(np.float32)
    return to_array(raw.view(np.uint8).reshape(-1), dtype, list(raw.shape), "")


def _squares(x: Array) -> float:
    """Return the sum of squares in float64."""
    quick = loops(x)
    if quick:
        return float(quick.squares(x.reshape(-1)))
    return float(np.einsum("ij,ij->", x, x, dtype=np.float64))
