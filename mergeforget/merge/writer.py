"""Writes a model folder tensor by tensor as they are ready, with bounded memory, and resumes.

The weights grow in a hidden folder beside the target and take its place when all is there. A
journal notes each finished tensor; the same merge, started again after an interruption, goes on
from it. Blocks are written where they belong, so any number of threads gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeforget.console import progress
from mergeforget.errors import ResourceError
from mergeforget.files import append_jsonl, explained, read_json, read_jsonl, take_place, write_json
from mergeforget.merge.checkpoint import INDEX, SINGLE, SIZES, Checkpoint, TensorInfo
from mergeforget.tensors import stored, to_array

Array = NDArray[Any]
SHARD_BYTES = 5_000_000_000
FLUSH_BYTES = 500_000_000  # written between two flushes of the journal
JOURNAL, PLAN = "journal.jsonl", "plan.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".lock")


class Block(NamedTuple):
    """Consecutive rows of a tensor to write.

    Attributes:
        values: (rows, columns), as computed.
        energy: squared norm of the change that they hold; None where there is no base.
    """

    values: Array
    energy: float | None = None


@dataclass(frozen=True)
class Job:
    """One tensor to write.

    Attributes:
        blocks: gives its blocks of rows, first to last; None copies ``source`` as it lies.
        memory: bytes that it needs at once, at most.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[Block]] | None = None
    source: tuple[Checkpoint, TensorInfo] | None = None
    memory: int = 0

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * SIZES[self.dtype]


@dataclass
class Rounding:
    """What the output's dtype does to the change: sums of squares over all tensors."""

    error: float = 0.0
    energy: float = 0.0

    @property
    def relative(self) -> float | None:
        """``||realised - meant|| / ||meant||`` of the change; None where nothing changed."""
        return float((self.error / self.energy) ** 0.5) if self.energy else None


@dataclass
class Budget:
    """Memory that jobs share; each waits until there is room for it."""

    limit: int | None
    used: int = 0
    _turn: threading.Condition = field(default_factory=threading.Condition)

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise ResourceError where one job alone exceeds the limit."""
        largest = max(jobs, key=lambda job: job.memory)
        if self.limit is not None and largest.memory > self.limit:
            raise ResourceError(
                f"{largest.name} alone needs {largest.memory / 1e6:.0f} MB at once, more than "
                f"--max-memory allows ({self.limit / 1e6:.0f} MB). Allow more, or choose a method "
                "that works on blocks of rows, such as ties or dare_linear."
            )

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: self.limit is None or self.used + count <= self.limit)
            self.used += count
        try:
            yield
        finally:
            with self._turn:
                self.used -= count
                self._turn.notify_all()


def write_model(
    out: Path,
    jobs: Sequence[Job],
    plan: dict[str, Any],
    *,
    like: Checkpoint,
    facts: Callable[[Rounding], dict[str, Any]],
    shard_bytes: int = SHARD_BYTES,
    threads: int = 0,
    max_memory: int | None = None,
    durable: bool = True,
) -> Rounding:
    """Write a plain model folder.

    Args:
        plan: everything that decides the bytes; an interrupted merge with the same plan goes on.
        like: its config, tokenizer and further small files are carried over.
        facts: what ``candidate.json`` shall hold, given the rounding.
        durable: wait until the disk has the bytes, so that a power cut costs nothing that the
            journal tells of. Without it a kill costs nothing either.
        shard_bytes: of one file, at most, where no tensor is larger.

    Raises:
        ResourceError: the disk is full, memory does not suffice, or somebody else writes there.
    """
    budget = Budget(max_memory)
    budget.check(jobs)
    shards = _shards(jobs, shard_bytes)
    plan = json.loads(json.dumps(plan | {"shards": [[j.name for j in s] for s in shards]}))
    partial = out.parent / f".{out.name}.partial"
    with explained(out), _alone(out), _places(partial, plan, shards) as places:
        done = {row["name"]: row for row in read_jsonl(partial / JOURNAL)}
        _write_all(
            [j for j in jobs if j.name not in done], places, partial, budget, threads, durable
        )
        rounding = Rounding()
        for row in read_jsonl(partial / JOURNAL):
            rounding.error += row["error"]
            rounding.energy += row["energy"]
        _finish(partial, shards, like, jobs)
        write_json(partial / "candidate.json", facts(rounding))
        (partial / JOURNAL).unlink()
        (partial / PLAN).unlink()
        take_place(partial, out)
    return rounding


class Journal:
    """Notes finished tensors, after their bytes have reached the disk."""

    def __init__(self, path: Path, files: set[int], durable: bool) -> None:
        self.path, self.files, self.durable = path, files, durable
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._lock = threading.Lock()

    def note(self, row: dict[str, Any], count: int) -> None:
        """Remember a tensor of ``count`` bytes; now and then they are made safe together."""
        with self._lock:
            self._rows.append(row)
            self._bytes += count
        if self._bytes > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make safe, then write down, all tensors remembered."""
        with self._lock:
            if self.durable:
                for file in self.files:
                    os.fsync(file)
            if self._rows:
                append_jsonl(self.path, self._rows)
            self._rows, self._bytes = [], 0


class Place(NamedTuple):
    """Where the bytes of a tensor go: an open file and an offset."""

    file: int
    start: int


def _write_all(
    jobs: Sequence[Job],
    places: dict[str, Place],
    partial: Path,
    budget: Budget,
    threads: int,
    durable: bool,
) -> None:
    """Write jobs, the largest first, and note each in the journal when it is written."""
    journal = Journal(partial / JOURNAL, {place.file for place in places.values()}, durable)
    stop = threading.Event()

    def run(job: Job) -> None:
        if stop.is_set():
            return
        with budget.take(job.memory):
            error, energy = _write_tensor(job, places[job.name], stop)
        if not stop.is_set():
            journal.note({"name": job.name, "error": error, "energy": energy}, job.nbytes)
            bar.advance(note=job.name)

    ordered = sorted(jobs, key=lambda job: -job.nbytes)
    with (
        progress("Merging", len(jobs)) as bar,
        ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool,
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


def _write_tensor(job: Job, place: Place, stop: threading.Event) -> tuple[float, float]:
    """Write one tensor; returns squared rounding error and squared norm of its change."""
    if job.blocks is None:
        _copy(job, place)
        return 0.0, 0.0
    offset, error, energy = place.start, 0.0, 0.0
    for block in job.blocks():
        if stop.is_set():
            break
        raw = stored(block.values, job.dtype)
        if block.energy is not None:
            energy += block.energy
            if job.dtype not in ("F32", "F64"):
                error += _rounding_error(raw, block.values, job.dtype)
        _put(place.file, raw.data.cast("B"), offset)
        offset += raw.nbytes
    return error, energy


def _rounding_error(raw: Array, values: Array, dtype: str) -> float:
    data = raw.view(np.uint8).reshape(-1).data
    apart = to_array(data, dtype, list(values.shape), "") - values  # type: ignore[arg-type]
    return float(np.einsum("ij,ij->", apart, apart, dtype=np.float64))


def _copy(job: Job, place: Place) -> None:
    assert job.source is not None
    checkpoint, info = job.source
    step = 1 << 22
    for start in range(0, info.numel, step):
        data = checkpoint.raw(info, start, min(start + step, info.numel))
        _put(place.file, memoryview(data), place.start + start * SIZES[info.dtype])


def _put(file: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count


def _shards(jobs: Sequence[Job], shard_bytes: int) -> list[list[Job]]:
    shards: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        if shards[-1] and size + job.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(job)
        size += job.nbytes
    return shards


def _names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


@contextmanager
def _places(
    partial: Path, plan: dict[str, Any], shards: Sequence[Sequence[Job]]
) -> Iterator[dict[str, Place]]:
    """The files to write into, open; begun afresh unless an interrupted merge had the same plan."""
    if not (partial / PLAN).exists() or read_json(partial / PLAN) != plan:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    places: dict[str, Place] = {}
    files: list[int] = []
    try:
        for name, shard in zip(_names(len(shards)), shards, strict=True):
            header, starts = _header(shard)
            path = partial / name
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            files.append(file)
            os.truncate(file, len(header) + sum(job.nbytes for job in shard))
            _put(file, memoryview(header), 0)
            places |= {job.name: Place(file, at) for job, at in zip(shard, starts, strict=True)}
        if not (partial / PLAN).exists():
            write_json(partial / PLAN, plan)
        yield places
    finally:
        for file in files:
            os.close(file)


def _header(shard: Sequence[Job]) -> tuple[bytes, list[int]]:
    """The header of a safetensors file, and where each tensor starts in it."""
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


def _finish(
    partial: Path, shards: Sequence[Sequence[Job]], like: Checkpoint, jobs: Sequence[Job]
) -> None:
    """Carry config, tokenizer and further small files over, and write the index."""
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
        names = _names(len(shards))
        places = {j.name: n for n, shard in zip(names, shards, strict=True) for j in shard}
        total = sum(job.nbytes for job in jobs)
        write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Be the only one who writes this folder."""
    from filelock import FileLock, Timeout

    out.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(out.parent / f".{out.name}.lock", timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise ResourceError(f"{out} is being written by another mergeforget.") from error
    try:
        yield
    finally:
        held.release()
