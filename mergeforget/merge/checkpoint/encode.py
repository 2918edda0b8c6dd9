"""Blocks as they are stored: the base with its change, rounded, and what the rounding costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.merge.checkpoint.jobs import Block
from mergeforget.merge.kernels.dispatch import Room, loops
from mergeforget.tensors import stored, to_array

Array = NDArray[Any]
_room = Room()


def changed(origin: Array, change: Array, dtype: str, name: str) -> Block:
    """``origin + change``, (rows, columns), as it is stored in ``dtype``.

    Raises:
        NumericError: as ``encoded``.
    """
    if loops(origin, change) and dtype in ("BF16", "F32"):
        values = np.add(origin, change, out=_room.take("sum", change.shape, np.float32))
    else:
        values = origin + change
    raw = encoded(values, dtype, name)
    energy = _squares(change)
    if dtype in ("F32", "F64"):
        return Block(raw, energy)
    return Block(raw, energy, _squares(_decoded(raw, dtype) - values))


def encoded(values: Array, dtype: str, name: str) -> Array:
    """Values of a tensor, known by ``name``, as their bits lie in a file of ``dtype``.

    Raises:
        NumericError: they are too large for it.
    """
    quick = loops(values) if dtype == "BF16" else None
    if not quick:
        return stored(values, dtype, name)
    raw = _room.take("raw", values.shape, np.uint16)
    quick.narrow(values.reshape(-1).view(np.uint32), raw.reshape(-1))
    return raw


def _decoded(raw: Array, dtype: str) -> Array:
    if dtype == "BF16" and loops():
        wide = _room.take("wide", raw.shape, np.uint32)
        quick = loops()
        assert quick
        quick.widen(raw.reshape(-1), wide.reshape(-1))
        return wide.view(np.float32)
    return to_array(raw.view(np.uint8).reshape(-1), dtype, list(raw.shape), "")


def _squares(x: Array) -> float:
    """Sum of squares in float64."""
    quick = loops(x)
    if quick:
        return float(quick.squares(x.reshape(-1)))
    return float(np.einsum("ij,ij->", x, x, dtype=np.float64))
