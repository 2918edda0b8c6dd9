"""Write a model folder tensor by tensor, with bounded memory and resumption.

The weights are written to a hidden folder next to the target, which is replaced when they are
complete. A journal records each finished tensor, and a repeated merge resumes from it. Blocks are
written at their offsets, so the number of threads does not change the bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mergeforget.console import progress
from mergeforget.files import (
    append_jsonl,
    explained,
    read_json,
    read_jsonl,
    reading,
    take_place,
    write_json,
    write_text,
)
from mergeforget.merge.checkpoint.jobs import MemoryBudget, Rounding, TensorJob
from mergeforget.merge.checkpoint.reader import INDEX, SINGLE, SIZES, Checkpoint
from mergeforget.merge.kernels.dispatch import workers
from mergeforget.model_files import TOKENIZER_FILES, copy_tokenizer
from mergeforget.replace import link_target, write_lock

SHARD_BYTES = 5_000_000_000
FLUSH_BYTES = 500_000_000  # bytes between two flushes of the journal
JOURNAL = "journal.jsonl"


def write_model(
    out: Path,
    jobs: Sequence[TensorJob],
    plan: dict[str, Any],
    *,
    like: Checkpoint,
    facts: Callable[[Rounding], dict[str, Any]],
    template: str | None = None,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    threads: int = 0,
    max_memory: int | None = None,
    durable: bool = True,
) -> Rounding:
    """Write a plain model folder.

    Args:
        plan: Everything that determines the bytes; an interrupted merge with an equal plan resumes.
        like: Model whose config, tokenizer and other small files are copied.
        template: Chat template to write instead of that of ``like``.
        tokenizer: Folder with the tokenizer to copy instead of that of ``like``.
        facts: Returns the content of ``candidate.json``, given the rounding error.
        durable: Flush to the disk before a tensor is recorded, so that a power failure loses
            nothing that the journal records. A killed process loses nothing in either case.
        shard_bytes: Maximum size of a file, unless a single tensor is larger.

    Raises:
        ResourceError: The disk is full, there is too little memory, or another process writes
            there.
    """
    budget = MemoryBudget(max_memory)
    budget.check(jobs)
    shards = in_shards(jobs, shard_bytes)
    plan = json.loads(json.dumps(plan | {"shards": [[j.name for j in s] for s in shards]}))
    out = link_target(out)
    partial = out.parent / f".{out.name}.partial"
    prepared = opened(partial, plan, shards, durable=durable)
    with explained(out), write_lock(out), prepared as offsets:
        written, _ = finished(partial / JOURNAL)
        _write_all(
            [j for j in jobs if j.name not in written], offsets, partial, budget, threads, durable
        )
        _, rounding = finished(partial / JOURNAL)
        carry_over(partial, shards, like, jobs, durable=durable)
        if tokenizer is not None:
            for name in TOKENIZER_FILES:  # a file that only the base has would take effect
                (partial / name).unlink(missing_ok=True)
            copy_tokenizer(tokenizer, partial)
        if template is not None:  # it precedes that of tokenizer_config.json
            write_text(partial / "chat_template.jinja", template)
        write_json(partial / "candidate.json", facts(rounding), durable=durable)
        (partial / JOURNAL).unlink()
        (partial / PLAN).unlink()
        take_place(partial, out)
    return rounding


def finished(journal: Path) -> tuple[set[str], Rounding]:
    """Read the names of the tensors that a journal records as written, and their rounding errors.

    Raises:
        InputError: A line is damaged.
    """
    names, rounding = set(), Rounding()
    with reading(journal):
        for row in read_jsonl(journal):
            if not isinstance(row["name"], str):
                raise TypeError(f"name is {row['name']!r}")
            names.add(row["name"])
            rounding.error += row["error"]
            rounding.energy += row["energy"]
    return names, rounding


class Journal:
    """Record finished tensors after their bytes are flushed to the disk."""

    def __init__(self, path: Path, files: set[int], durable: bool) -> None:
        self.path, self.files, self.durable = path, files, durable
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._lock = threading.Lock()

    def note(self, row: dict[str, Any], count: int) -> None:
        """Add a finished tensor of ``count`` bytes; flush when enough bytes are pending."""
        with self._lock:
            self._rows.append(row)
            self._bytes += count
        if self._bytes > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Flush all pending tensors to the disk, then record them."""
        with self._lock:
            if self.durable:
                for file in self.files:
                    os.fsync(file)
            if self._rows:
                append_jsonl(self.path, self._rows, sync=self.durable)
            self._rows, self._bytes = [], 0


def _write_all(
    jobs: Sequence[TensorJob],
    offsets: dict[str, FileOffset],
    partial: Path,
    budget: MemoryBudget,
    threads: int,
    durable: bool,
) -> None:
    """Run jobs, the largest first, and record each in the journal when it is written."""
    journal = Journal(partial / JOURNAL, {offset.file for offset in offsets.values()}, durable)
    stop = threading.Event()

    def run(job: TensorJob) -> None:
        if stop.is_set():
            return
        with budget.take(job.memory):
            error, energy = _write_tensor(job, offsets[job.name], stop)
        if not stop.is_set():
            journal.note({"name": job.name, "error": error, "energy": energy}, job.nbytes)
            bar.advance(note=job.name)

    ordered = sorted(jobs, key=lambda job: -job.nbytes)
    with (
        progress("Merging", len(jobs)) as bar,
        workers(threads) as pool,
    ):
        futures = [pool.submit(run, job) for job in ordered]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except BaseException:
            stop.set()
            raise
        finally:
            journal.flush()


def _write_tensor(job: TensorJob, target: FileOffset, stop: threading.Event) -> tuple[float, float]:
    """Write one tensor; return the squared rounding error and the squared norm of its delta."""
    if job.blocks is None:
        _copy(job, target)
        return 0.0, 0.0
    offset, error, energy = target.start, 0.0, 0.0
    for block in job.blocks():
        if stop.is_set():
            break
        error += block.error
        energy += block.energy
        put(target.file, block.raw.data.cast("B"), offset)
        offset += block.raw.nbytes
    return error, energy


def _copy(job: TensorJob, target: FileOffset) -> None:
    assert job.source is not None
    checkpoint, info = job.source
    step = 1 << 22
    for start in range(0, info.numel, step):
        data = checkpoint.raw(info, start, min(start + step, info.numel))
        put(target.file, data.data, target.start + start * SIZES[info.dtype])


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
    partial: Path,
    plan: dict[str, Any],
    shards: Sequence[Sequence[TensorJob]],
    *,
    durable: bool = True,
) -> Iterator[dict[str, FileOffset]]:
    """Open the files to write; they are created unless an interrupted merge had the same plan."""
    if not (partial / PLAN).exists() or read_json(partial / PLAN) != plan:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    offsets: dict[str, FileOffset] = {}
    files: list[int] = []
    try:
        for name, shard in zip(file_names(len(shards)), shards, strict=True):
            header, starts = _header(shard)
            path = partial / name
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            files.append(file)
            os.truncate(file, len(header) + sum(job.nbytes for job in shard))
            put(file, memoryview(header), 0)
            offsets |= {
                job.name: FileOffset(file, start) for job, start in zip(shard, starts, strict=True)
            }
        if not (partial / PLAN).exists():
            write_json(partial / PLAN, plan, durable=durable)
        yield offsets
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
    *,
    durable: bool = True,
) -> None:
    """Copy config, tokenizer and other small files, and write the index."""
    for path in sorted(like.folder.iterdir()):
        if path.is_file() and not path.name.endswith((*WEIGHTS, ".index.json")):
            shutil.copyfile(path, partial / path.name)
    kinds = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
    dtypes = {kinds[job.dtype] for job in jobs if job.dtype in kinds}
    config = dict(like.config)
    if len(dtypes) == 1:
        config["dtype" if "torch_dtype" not in config else "torch_dtype"] = dtypes.pop()
    if config:
        write_json(partial / "config.json", config, durable=durable)
    if len(shards) > 1:
        names = file_names(len(shards))
        file_by_tensor = {j.name: n for n, shard in zip(names, shards, strict=True) for j in shard}
        total = sum(job.nbytes for job in jobs)
        index = {"metadata": {"total_size": total}, "weight_map": file_by_tensor}
        write_json(partial / INDEX, index, durable=durable)
