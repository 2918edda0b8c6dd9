"""Write a model folder tensor by tensor, with bounded memory and resumption.

The weights are written to a hidden folder next to the target, which is replaced when they are
complete. A journal records each finished tensor, and a repeated merge resumes from it. Blocks are
written at their offsets, so the number of threads does not change the bytes.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path
from typing import Any

from mergeforget.console import progress
from mergeforget.files import append_jsonl, explained, read_jsonl, reading, take_place, write_json
from mergeforget.merge.checkpoint.jobs import MemoryBudget, Rounding, TensorJob
from mergeforget.merge.checkpoint.reader import SIZES, Checkpoint
from mergeforget.merge.checkpoint.shards import PLAN, FileOffset, carry_over, in_shards, opened, put
from mergeforget.merge.kernels.dispatch import workers
from mergeforget.replace import followed, writing

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
    shard_bytes: int = SHARD_BYTES,
    threads: int = 0,
    max_memory: int | None = None,
    durable: bool = True,
) -> Rounding:
    """Write a plain model folder.

    Args:
        plan: Everything that determines the bytes; an interrupted merge with an equal plan resumes.
        like: Model whose config, tokenizer and other small files are copied.
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
    out = followed(out)
    partial = out.parent / f".{out.name}.partial"
    with explained(out), writing(out), opened(partial, plan, shards) as places:
        done, _ = finished(partial / JOURNAL)
        _write_all(
            [j for j in jobs if j.name not in done], places, partial, budget, threads, durable
        )
        _, rounding = finished(partial / JOURNAL)
        carry_over(partial, shards, like, jobs)
        write_json(partial / "candidate.json", facts(rounding))
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
                append_jsonl(self.path, self._rows)
            self._rows, self._bytes = [], 0


def _write_all(
    jobs: Sequence[TensorJob],
    places: dict[str, FileOffset],
    partial: Path,
    budget: MemoryBudget,
    threads: int,
    durable: bool,
) -> None:
    """Run jobs, the largest first, and record each in the journal when it is written."""
    journal = Journal(partial / JOURNAL, {place.file for place in places.values()}, durable)
    stop = threading.Event()

    def run(job: TensorJob) -> None:
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


def _write_tensor(job: TensorJob, place: FileOffset, stop: threading.Event) -> tuple[float, float]:
    """Write one tensor; return the squared rounding error and the squared norm of its delta."""
    if job.blocks is None:
        _copy(job, place)
        return 0.0, 0.0
    offset, error, energy = place.start, 0.0, 0.0
    for block in job.blocks():
        if stop.is_set():
            break
        error += block.error
        energy += block.energy
        put(place.file, block.raw.data.cast("B"), offset)
        offset += block.raw.nbytes
    return error, energy


def _copy(job: TensorJob, place: FileOffset) -> None:
    assert job.source is not None
    checkpoint, info = job.source
    step = 1 << 22
    for start in range(0, info.numel, step):
        data = checkpoint.raw(info, start, min(start + step, info.numel))
        put(place.file, data.data, place.start + start * SIZES[info.dtype])
