"""Safetensors files as numpy arrays, without torch; bfloat16 included.

Half-precision types are converted to float32 when read, since numpy has no bfloat16 and float16
sums lose bits; writing rounds to nearest, ties to even, as torch does.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import InputError, NumericError, ResourceError
from mergeforget.files import explained

Array = NDArray[Any]
NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes, the limit of the format
FLOATS = {"F64", "F32", "F16", "BF16"}


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read every tensor of a regular file, or of a link to one; a pipe or device could be endless.

    Returns:
        Arrays by name (F16 and BF16 as float32), and the stored dtype of each.

    Raises:
        InputError: The file is missing, truncated, malformed, or has a dtype that numpy lacks.
    """
    try:
        entries = _entries(path)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except MemoryError as error:
        raise ResourceError(f"{path} does not fit into memory.") from error
    except _MalformedError as error:
        raise InputError(
            f"{path} is truncated or not a safetensors file ({error}). Copy it again, or repeat "
            "the command that wrote it."
        ) from error
    arrays, dtypes = {}, {}
    for name, entry in entries:
        arrays[name] = to_array(entry["data"], entry["dtype"], entry["shape"], f"{path}: {name}")
        dtypes[name] = entry["dtype"]
    return arrays, dtypes


class _MalformedError(Exception):
    """Return the error of the safetensors library for a file."""


def _entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return name, dtype, shape and bytes of every tensor, from one read of the file.

    The safetensors library copies each tensor. A file with a regular header is split
    into views instead; the library reads or rejects all others.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise _MalformedError("it is a folder, a pipe or a device")
    with open(path, "rb") as file:
        size = facts.st_size
        length = int.from_bytes(file.read(8), "little")
        if 0 < length <= min(size - 8, MAX_HEADER):
            header = _plain_header(file.read(length), size - 8 - length)
            data = np.empty(size - 8 - length if header else 0, np.uint8)
            if header and file.readinto(data.data) == len(data) and not file.read(1):
                return [
                    (name, {"dtype": kind, "shape": shape, "data": data[start:stop]})
                    for name, (kind, shape, start, stop) in header.items()
                ]
    import safetensors

    try:
        read: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(path.read_bytes())
        return read
    except safetensors.SafetensorError as error:
        raise _MalformedError(error) from error


def _plain_header(raw: bytes, size: int) -> dict[str, tuple[str, list[int], int, int]] | None:
    """Return dtype, shape, start and end of each tensor; None for an irregular header.

    The tensors must be consecutive, aligned, and fill the ``size`` bytes after the header.
    """
    try:
        facts = json.loads(raw, object_pairs_hook=_once)
        facts.pop("__metadata__", None)
        every = [(*one["data_offsets"], one["dtype"], one["shape"], n) for n, one in facts.items()]
        every.sort(key=lambda one: one[:2])
        found, end = {}, 0
        for start, stop, kind, shape, name in every:
            itemsize = 2 if kind == "BF16" else np.dtype(NUMPY[kind]).itemsize
            right = all(type(x) is int and x >= 0 for x in (start, stop, *shape))
            if not right or start != end or start % itemsize:
                return None
            if stop - start != math.prod(shape) * itemsize:
                return None
            name.encode()  # a lone surrogate is a ValueError
            found[name], end = (kind, shape, start, stop), stop
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if end == size else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def all_finite(array: Array) -> bool:
    """Return whether no entry is NaN or Inf; a finite sum of squares proves it in one pass."""
    flat = array.reshape(-1)
    return math.isfinite(np.vdot(flat, flat)) or bool(np.isfinite(flat).all())


def to_array(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],
    dtype: str,
    shape: list[int],
    where: str,
) -> Array:
    """Convert the raw bytes of a tensor to an array; half-precision types become float32."""
    if dtype not in NAMES:
        raise InputError(f"{where} has the unsupported dtype {dtype}. Known: {[*NAMES]}.")
    array: Array
    if dtype == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        array = wide.view(np.float32)
    else:
        array = np.frombuffer(data, NUMPY[dtype])
    try:
        array = array.reshape(shape)
    except (ValueError, OverflowError) as error:  # too many dimensions, or [0, 2**62]
        raise InputError(f"{where} has a shape that numpy cannot represent: {error}.") from error
    return array.astype(np.float32) if dtype == "F16" else array


def stored(array: Array, dtype: str, name: str) -> Array:
    """Encode an array in ``dtype``, rounded to nearest even.

    Args:
        name: Name of the tensor, for messages.

    Raises:
        NumericError: A finite entry is too large for float16.
    """
    if dtype == "BF16":
        return round_to_bfloat16(array)
    if dtype != "F16":
        return np.ascontiguousarray(array, NUMPY[dtype])
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(array, np.float16)
    over = np.isinf(half) & np.isfinite(array)
    if over.any():
        raise NumericError(
            f"{name} reaches {np.abs(array[over]).max():.6g}, but float16 ends at 65504. Store it "
            "as bfloat16 or float32; --dtype sets the dtype of a whole model."
        )
    return half


def widest(dtypes: Iterable[str]) -> str:
    """Return the dtype that represents all: bfloat16 and float16 together need float32.

    >>> widest(["BF16", "BF16"]), widest(["BF16", "F32"]), widest(["BF16", "F16"])
    ('BF16', 'F32', 'F32')
    """
    found = set(dtypes)
    if "F64" in found:
        return "F64"
    return found.pop() if len(found) == 1 else "F32"


def round_to_bfloat16(array: Array) -> NDArray[np.uint16]:
    """Round float32 to its upper 16 bits, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    short = rounded.astype(np.uint16)
    if np.isnan(array).any():
        short[np.isnan(array)] = 0x7FC0
    return short


def write_safetensors(path: Path, tensors: dict[str, Array], dtype: str = "F32") -> None:
    """Write arrays; floating-point arrays are converted to ``dtype``."""
    import safetensors

    entries, kept = {}, []  # kept alive, because the library writes from pointers
    for name, array in sorted(tensors.items()):
        kind = dtype if array.dtype.kind == "f" else _name_of(array)
        raw = stored(array, kind, name)
        kept.append(raw)
        entries[name] = safetensors.TensorSpec(
            dtype=NAMES[kind],
            shape=list(array.shape),
            data_ptr=raw.ctypes.data,
            data_len=raw.nbytes,
        )
    with explained(path):
        safetensors.serialize_file(entries, str(path), {"format": "pt"})


def _name_of(array: Array) -> str:
    return next(name for name, kind in NUMPY.items() if array.dtype == kind)
