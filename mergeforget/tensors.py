"""Safetensors files as numpy arrays, without torch; bfloat16 included.

Half types are widened to float32 when read, since numpy has no bfloat16 and float16 sums lose
bits; writing rounds to nearest, ties to even, as torch does.
"""

from __future__ import annotations

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
FLOATS = {"F64", "F32", "F16", "BF16"}


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read every tensor of a file.

    Returns:
        Arrays by name (F16 and BF16 widened to float32), and the dtype each had in the file.

    Raises:
        InputError: the file is missing, truncated, malformed, or has a dtype numpy cannot hold.
    """
    import safetensors

    try:
        entries = safetensors.deserialize(path.read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except MemoryError as error:
        raise ResourceError(f"{path} does not fit into memory.") from error
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is truncated or not a safetensors file ({error}). Copy it again, or make it "
            "again with the command that wrote it."
        ) from error
    arrays, dtypes = {}, {}
    for name, entry in entries:
        arrays[name] = to_array(entry["data"], entry["dtype"], entry["shape"], f"{path}: {name}")
        dtypes[name] = entry["dtype"]
    return arrays, dtypes


def to_array(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],
    dtype: str,
    shape: list[int],
    where: str,
) -> Array:
    """Raw bytes of one tensor as an array; half types become float32."""
    if dtype == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if dtype not in NUMPY:
        raise InputError(f"{where} has the dtype {dtype}, which is not read. Known: {[*NAMES]}.")
    array: Array = np.frombuffer(data, NUMPY[dtype]).reshape(shape)
    return array.astype(np.float32) if dtype == "F16" else array


def stored(array: Array, dtype: str, name: str) -> Array:
    """The bits of an array in a file of ``dtype``, rounded to nearest even.

    Args:
        name: of the tensor, for messages.

    Raises:
        NumericError: a finite entry is too large for float16.
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
            f"{name} reaches {np.abs(array[over]).max():.6g}, and float16 ends at 65504. Store it "
            "as bfloat16 or float32, which --dtype chooses for a whole model."
        )
    return half


def widest(dtypes: Iterable[str]) -> str:
    """The dtype that holds the values of all: bfloat16 and float16 together need float32.

    >>> widest(["BF16", "BF16"]), widest(["BF16", "F32"]), widest(["BF16", "F16"])
    ('BF16', 'F32', 'F32')
    """
    found = set(dtypes)
    if "F64" in found:
        return "F64"
    return found.pop() if len(found) == 1 else "F32"


def round_to_bfloat16(array: Array) -> NDArray[np.uint16]:
    """float32 as the upper 16 bits, rounded to nearest even; NaN stays NaN."""
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
    """Write arrays; those of a floating type are stored as ``dtype``, others as they are."""
    import safetensors

    entries, kept = {}, []  # kept: the library writes from these pointers
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
