"""Read checkpoints tensor by tensor and block by block from safetensors, never from a pickle.

Every header is checked before tensor data is read: a file that is truncated, that names
another folder or whose tensors overlap is an error that names it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import InputError
from mergeforget.files import read_json
from mergeforget.merge.kernels.dispatch import Workspace, loops
from mergeforget.parsing import parse_json, unique_keys
from mergeforget.tensors import FLOATS, NUMPY, to_array

Array = NDArray[Any]
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes, the limit of the format
QUANTISED = ("F8", "F6", "F4")  # dtypes that are multiplied by scales of other tensors
SIZES = {name: np.dtype(kind).itemsize for name, kind in NUMPY.items()} | {"BF16": 2}


class TensorInfo(NamedTuple):
    """The location of a tensor in a file.

    Attributes:
        start: Offset of its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape as (rows, columns); a vector is one row."""
        if len(self.shape) < 2:
            return 1, math.prod(self.shape)
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * SIZES[self.dtype]

    @property
    def floating(self) -> bool:
        """Whether the dtype is a floating-point type."""
        return self.dtype in FLOATS


@dataclass(frozen=True)
class Checkpoint:
    """A model folder with safetensors weights.

    Attributes:
        tensors: Tensors by name, in the order of the files.
        config: Content of ``config.json``.
        added: Rows (entries of a vector) after those in the file, by name of the tensor; see
            ``with_new_tokens``.
    """

    folder: Path
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    _files: dict[Path, int] = field(default_factory=dict)
    added: Mapping[str, Array] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder, for messages."""
        return self.folder.name

    def read(
        self, info: TensorInfo, rows: slice = slice(None), room: Workspace | None = None
    ) -> Array:
        """Return rows of a tensor as a matrix; half-precision types become float32.

        Args:
            room: Memory to read into; the result is valid until the next read.

        Raises:
            InputError: The file is truncated.
        """
        height, width = info.matrix
        start, stop, _ = rows.indices(height)
        if (added := self.added.get(info.name)) is not None:
            stored = replace(self, added={})
            if len(info.shape) < 2:
                short = info._replace(shape=(width - len(added),))
                return np.concatenate([stored.read(short, rows, room), added[None][rows]], axis=1)
            end = height - len(added)
            in_file = slice(min(start, end), min(stop, end))
            first = stored.read(info, in_file, room)
            return np.concatenate([first, added[max(0, start - end) : max(0, stop - end)]])
        buffer = None
        if room is not None:
            buffer = room.take("raw", ((stop - start) * width * SIZES[info.dtype],), np.uint8)
        data = self.raw(info, start * width, stop * width, buffer)
        quick = loops()
        if info.dtype == "BF16" and room is not None and quick:
            wide = room.take("wide", (stop - start, width), np.uint32)
            quick.widen(data.view(np.uint16), wide.reshape(-1))
            return wide.view(np.float32)
        where = f"{info.path}: {info.name}"
        return to_array(data, info.dtype, [stop - start, width], where)

    def raw(
        self, info: TensorInfo, start: int, stop: int, room: Array | None = None
    ) -> NDArray[np.uint8]:
        """Read the bytes of the entries from ``start`` to ``stop``, into ``room`` if given."""
        size = SIZES[info.dtype]
        data = np.empty((stop - start) * size, np.uint8) if room is None else room
        view, offset = data.data, info.start + start * size
        while view:
            count = os.preadv(self.file(info.path), [view], offset)
            if count == 0:
                raise InputError(f"{info.path} is truncated: {info.name} is incomplete.")
            view, offset = view[count:], offset + count
        return data

    def file(self, path: Path) -> int:
        """Return the descriptor of an open weights file."""
        return self._files[path]


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """Open a checkpoint; its files stay open inside the block.

    Raises:
        InputError: The folder is not a model, has no tensors, or a file is malformed.
    """
    paths = weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_header(path).items():
            if name in tensors:
                raise InputError(f"{name} is stored in {tensors[name].path} and in {path}.")
            tensors[name] = info
    if not tensors:
        raise InputError(f"{folder} contains no tensors. Save the model again, or copy it again.")
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'} is not a JSON object.")
    files: dict[Path, int] = {}
    try:
        for path in paths:
            files[path] = os.open(path, os.O_RDONLY)
        yield Checkpoint(folder, tensors, config, files)
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder.

    A single file takes precedence over an index, as in transformers: the index may be outdated.

    Raises:
        InputError: There are none, or the index names a file outside the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX} has no weight_map.")
        names = sorted({str(file) for file in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise InputError(
                    f"{folder / INDEX} names {name!r}. Weights are read from .safetensors files of "
                    "the folder itself only."
                )
            if not (folder / name).is_file():
                raise InputError(f"{folder / INDEX} names {name}, which is missing.")
        return [folder / name for name in names]
    pickles = list(folder.glob("*.bin"))
    reason = "It contains only pickles, which are not read" if pickles else "No weights were found"
    raise InputError(
        f"{folder} contains neither {SINGLE} nor {INDEX}. {reason}: a model is a folder that "
        "save_pretrained wrote."
    )


class _HeaderError(InputError):
    """The header of a file is not JSON."""


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the checked names, dtypes, shapes and offsets of the tensors of a file.

    Raises:
        InputError: The file is missing, truncated, or not safetensors.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError("its header is incomplete")
            header = parse_json(file.read(length), path, _HeaderError, pairs=unique_keys)
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        header.pop("__metadata__", None)
        return _placed(header, path, 8 + length, size)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, _HeaderError) as error:
        raise InputError(
            f"{path} is truncated or not a safetensors file ({error}). Copy it again."
        ) from error


def _placed(header: dict[str, Any], path: Path, first: int, size: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    end = first
    for name, facts in sorted(header.items(), key=lambda item: _offsets(item[1])):
        start, stop = _offsets(facts)
        shape, dtype = facts.get("shape"), facts.get("dtype")
        if not isinstance(dtype, str) or dtype not in SIZES:
            if isinstance(dtype, str) and dtype.startswith(QUANTISED):
                raise InputError(
                    f"{path}: {name} is stored as {dtype} (quantised), which is not read. Name the "
                    "unquantised model, for example with --base."
                )
            raise ValueError(f"{name} has the unsupported dtype {dtype!r}")
        if not isinstance(shape, list) or not all(type(x) is int and x >= 0 for x in shape):
            raise ValueError(f"{name} has the shape {shape!r}")
        info = TensorInfo(name, dtype, tuple(shape), path, first + start)
        if info.nbytes != stop - start or info.start != end:
            raise ValueError(f"the offsets of {name} do not match its shape and the other tensors")
        end += info.nbytes
        tensors[name] = info
    if end != size:
        raise ValueError(f"it has {size} bytes, but its header describes {end}")
    return tensors


def _offsets(facts: Any) -> tuple[int, int]:
    pair = facts.get("data_offsets") if isinstance(facts, dict) else None
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(x) is int for x in pair):
        raise ValueError(f"data_offsets are {pair!r}")
    return pair[0], pair[1]
