"""Encode blocks for a file: the base with its delta, rounded, and the rounding error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import NumericError
from mergeforget.merge.checkpoint.jobs import Block
from mergeforget.merge.kernels.dispatch import Room, loops
from mergeforget.tensors import FLOATS, NAMES, stored, to_array

Array = NDArray[Any]
_room = Room()


def changed(origin: Array, change: Array, dtype: str, name: str) -> Block:
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
