"""Layout of the safetensors files of a model folder that is being written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mergeforget.files import read_json, write_json
from mergeforget.merge.checkpoint.jobs import TensorJob
from mergeforget.merge.checkpoint.reader import INDEX, SINGLE, Checkpoint

PLAN = "plan.json"

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".lock")


class FileOffset(NamedTuple):
    """Destination of the bytes of a tensor: an open file and an offset."""

    file: int
    start: int


def in_shards(jobs: Sequence[TensorJob], shard_bytes: int) -> list[list[TensorJob]]:
    """Distribute tensors over files of a maximum size."""
    shards: list[list[TensorJob]] = [[]]
    size = 0
    for job in jobs:
        if shards[-1] and size + job.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(job)
        size += job.nbytes
    return shards


def file_names(count: int) -> list[str]:
    """Return the names of the weight files."""
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


@contextmanager
def opened(
    partial: Path, plan: dict[str, Any], shards: Sequence[Sequence[TensorJob]]
) -> Iterator[dict[str, FileOffset]]:
    """Open the files to write; they are created unless an interrupted merge had the same plan."""
    if not (partial / PLAN).exists() or read_json(partial / PLAN) != plan:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    places: dict[str, FileOffset] = {}
    files: list[int] = []
    try:
        for name, shard in zip(file_names(len(shards)), shards, strict=True):
            header, starts = _header(shard)
            path = partial / name
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            files.append(file)
            os.truncate(file, len(header) + sum(job.nbytes for job in shard))
            put(file, memoryview(header), 0)
            places |= {
                job.name: FileOffset(file, at) for job, at in zip(shard, starts, strict=True)
            }
        if not (partial / PLAN).exists():
            write_json(partial / PLAN, plan)
        yield places
    finally:
        for file in files:
            os.close(file)


def _header(shard: Sequence[TensorJob]) -> tuple[bytes, list[int]]:
    """Return the header of a safetensors file, and the offset of each tensor."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, offsets = 0, []
    for job in shard:
        end = offset + job.nbytes
        entries[job.name] = {
            "dtype": job.dtype,
            "shape": list(job.shape),
            "data_offsets": [offset, end],
        }
        offsets.append(offset)
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text, [8 + len(text) + at for at in offsets]


def put(file: int, data: memoryview, offset: int) -> None:
    """Write all bytes at an offset of a file."""
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count


def carry_over(
    partial: Path,
    shards: Sequence[Sequence[TensorJob]],
    like: Checkpoint,
    jobs: Sequence[TensorJob],
) -> None:
    """Copy config, tokenizer and other small files, and write the index."""
    for path in sorted(like.folder.iterdir()):
        if path.is_file() and not path.name.endswith((*WEIGHTS, ".index.json")):
            shutil.copyfile(path, partial / path.name)
    kinds = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
    found = {kinds[job.dtype] for job in jobs if job.dtype in kinds}
    config = dict(like.config)
    if len(found) == 1:
        config["dtype" if "torch_dtype" not in config else "torch_dtype"] = found.pop()
    if config:
        write_json(partial / "config.json", config)
    if len(shards) > 1:
        names = file_names(len(shards))
        places = {j.name: n for n, shard in zip(names, shards, strict=True) for j in shard}
        total = sum(job.nbytes for job in jobs)
        write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
