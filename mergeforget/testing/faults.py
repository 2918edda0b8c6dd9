"""Kill writers, fill disks and damage inputs, and count the failures.

``python -m mergeforget.testing.faults`` (or ``make faults``) prints the table of
docs/reliability.md. A writer runs in a child process in which one file operation fails; every
operation has its turn. Inputs are damaged by ``mergeforget.testing.fuzzing``.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from mergeforget.errors import ResourceError
from mergeforget.replace import TEMPORARY
from mergeforget.testing.fuzzing import Counted, fuzz
from mergeforget.testing.parsers import FUZZED
from mergeforget.testing.writers import WRITERS, Writer

Fault = Literal["kill", "random kill", "full disk", "large file"]

NOTES = "notes.txt"  # a file of the user inside a result
KILLED = 77
TRAINING_EVERY = 5  # every fifth file operation of a training is tested: it has hundreds
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile"}


class _Hook:
    """An audit hook that ends the process, or raises ENOSPC, at the given file operation."""

    def __init__(self, work: str, at: int, fault: Fault) -> None:
        self.work, self.at, self.fault, self.seen = work, at, fault, 0

    def __call__(self, event: str, arguments: Any) -> None:
        writes = event in EVENTS or (event == "open" and (arguments[2] or 0) & WRITING)
        if not writes or not any(self.work in str(argument) for argument in arguments):
            return
        self.seen += 1
        if self.seen != self.at:
            return
        if self.fault == "kill":
            os._exit(KILLED)
        if event in ("open", "os.mkdir", "shutil.copyfile"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


def _in_child(
    writer: Writer, work: Path, version: int, at: float = 0, fault: Fault = "kill"
) -> int:
    """Run a writer in a forked child, with a fault where ``at`` is not 0.

    Args:
        at: The file operation, from 1; of "random kill" the seconds after which the child is
            killed; of "large file" the size in bytes that a file cannot exceed.

    Returns:
        Its exit status; the number of file operations is written to ``work/../count``.
    """
    child = os.fork()
    if child:
        if fault == "random kill" and at:
            time.sleep(at)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        hook = _Hook(str(work), int(at) if fault in ("kill", "full disk") else 0, fault)
        sys.addaudithook(hook)
        if fault == "large file" and at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(at), resource.RLIM_INFINITY))
        writer.write(work, version)
        (work.parent / "count").write_text(str(hook.seen))
        code = 0
    except ResourceError:
        code = ResourceError.exit_code
    except BaseException:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        (work.parent / "error").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def interrupt(
    name: str, folder: Path, *, fault: Fault = "kill", every: int = 1, random_kills: int = 20
) -> Counted:
    """Interrupt a writer, one run for each file operation, and check the result.

    Args:
        name: A key of ``WRITERS``.
        folder: An empty working folder.
        fault: "kill" ends the process at a file operation, "full disk" fails the operation;
            "large file" fails each write beyond a size, also in libraries that are not written in
            Python; "random kill" sends SIGKILL after a random time.
        every: Try each ``every``-th place.
        random_kills: Number of random kills.
    """
    writer, counted = WRITERS[name], Counted()
    start, dry = folder / "start", folder / "dry"
    start.mkdir(parents=True)
    if _in_child(writer, start, 1):
        raise RuntimeError(f"{name} fails without a fault: {(folder / 'error').read_text()}")
    writer.version(start)  # load modules once, before the child processes are forked
    (start / "result" / NOTES).write_text("mine")
    shutil.copytree(start, dry, symlinks=True)
    began = time.monotonic()
    if _in_child(writer, dry, 2):
        raise RuntimeError(f"{name} fails without a fault: {(folder / 'error').read_text()}")
    places: Sequence[float] = range(1, int((folder / "count").read_text()) + 1)
    if fault == "random kill":
        took = time.monotonic() - began
        draw = random.Random(name)
        places = [draw.uniform(0.01, 1) * took for _ in range(random_kills)]
    elif fault == "large file":
        sizes = {p.stat().st_size for p in (dry / "result").rglob("*") if p.is_file()}
        places = sorted({place for size in sizes for place in (1, size // 2, size - 1)} - {0, -1})
    for number, at in enumerate(places[::every], 1):
        work = folder / f"at{number}"
        shutil.copytree(start, work, symlinks=True)
        code = _in_child(writer, work, 2, at, fault)
        counted.tried += 1
        counted.failures += [f"{name}, {fault} {at:g}: {e}" for e in _check(writer, work, code)]
        shutil.rmtree(work)
    shutil.rmtree(folder)
    return counted


def _check(writer: Writer, work: Path, code: int) -> Iterator[str]:
    if code not in (0, KILLED, -signal.SIGKILL, ResourceError.exit_code):
        yield f"exit status {code}: {(work.parent / 'error').read_text()[-300:]}"
    moved = [p for p in work.glob(".result.*.old")]
    try:
        if not moved and writer.version(work) not in (1, 2):
            yield "another result"
    except Exception as error:
        yield f"the result is missing or damaged ({error!r})"
    if _in_child(writer, work, 2):
        yield f"the same command fails afterwards: {(work.parent / 'error').read_text()[-300:]}"
        return
    if writer.version(work) != 2:
        yield "the next run does not give its result"
    if not (work / "result" / NOTES).is_file():
        yield "the user's file is lost"
    left = [p.name for p in work.rglob("*") if TEMPORARY.match(p.name) or ".partial" in p.name]
    if left:
        yield f"left after the next run: {left}"


def main(count: int = 2000) -> int:
    """Repeat every fault and print the table; the number of failures."""
    import mergeforget.console as console

    console.set_verbosity(50)
    failures: list[str] = []
    print("| fault | where | tried | failures |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for fault in get_args(Fault):
            for name in WRITERS:
                every = TRAINING_EVERY if name == "train-pair" else 1
                found = interrupt(name, work / f"{fault}-{name}", fault=fault, every=every)
                failures += found.failures
                print(f"| {fault} | {name} | {found.tried} | {len(found.failures)} |", flush=True)
        for name in FUZZED:
            # a folder of its own: files of another format would be read with the document
            found = fuzz(name, Path(tempfile.mkdtemp(dir=work)), count)
            failures += found.failures
            print(f"| damaged input | {name} | {found.tried} | {len(found.failures)} |", flush=True)
    print("\n".join(failures), file=sys.stderr)
    return len(failures)


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000), 1))
