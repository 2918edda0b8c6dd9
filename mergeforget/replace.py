"""Replace files and folders in one step, keep what others wrote there, and hold locks.

A result is written under a temporary name beside its place, flushed to the disk, and exchanged
with what was there in one system call. A process that is killed leaves either the earlier or the
new result, and a temporary file that the next writer of the same place removes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from mergeforget.console import say
from mergeforget.errors import InputError, MergeforgetError, ResourceError
from mergeforget.parsing import parse_json, read_text, usable_path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
NAME_BYTES = 215  # of a result; file systems allow 255, and a temporary name is longer
MARKS = ("export.json", "candidate.json")  # with "files": what we wrote into the folder
TEMPORARY = re.compile(
    r"^\.(?P<name>.+)\.(?P<host>[0-9a-f]{4})-(?P<pid>\d+)-[0-9a-f]{8}\.(tmp|old)$"
)
OURS = re.compile(  # files that this package, PEFT or transformers write into a model folder
    r"(README\.md|LICENSE|NOTICE|.*\.(json|jsonl|safetensors|jinja|model|tiktoken)"
    r"|(vocab|merges|spiece|tokenizer)[\w.-]*)"
)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file or folder beside ``path`` that takes its place when the block succeeds.

    The block creates a file or a folder at the yielded path. If it fails, what was at ``path``
    before is unchanged. A link is followed: what it points to is replaced, not the link.

    Raises:
        ResourceError: The disk is full.
        InputError: The place cannot be written.
    """
    with explained(path):
        path = followed(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
    temporary = _beside(path, "tmp")
    try:
        with explained(path):
            yield temporary
            _sync(temporary)
            take_place(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system's error about ``path`` into one of ours."""
    try:
        with full_disk_explained(path):
            yield
    except BrokenPipeError:  # of stdout: the command line ends quietly
        raise
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn a full disk or a file that is too large, whoever reports it, into a ResourceError."""
    try:
        yield
    except MergeforgetError:
        raise
    except Exception as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        full = isinstance(reason, OSError) and reason.errno in NO_SPACE
        if not full and not re.search(r"os error (27|28|122)\b", str(error)):
            raise
        raise ResourceError(
            f"The disk is full or a file is too large: {path} was not written, and nothing that "
            f"was there is lost. {_free(path)} Free some space, or choose another place with "
            "--out, and run the same command again, with --resume if it trains."
        ) from error


def take_place(temporary: Path, path: Path) -> None:
    """Exchange a finished file or folder with what is at ``path``, in one step where possible.

    Files in an earlier folder that this package did not write are copied into the new one. A link
    at ``path`` is kept: the folder that it points to is replaced.
    """
    path = followed(path)
    for leftover in [p for p in temporary.rglob(".*") if TEMPORARY.match(p.name)]:
        _remove(leftover)  # of a write inside the folder that was killed
    if temporary.is_dir() and not path.is_dir() and (path.exists() or path.is_symlink()):
        raise InputError(
            f"Cannot write {path}: a file is there. Remove it or choose another place."
        )
    if not temporary.is_dir() and path.is_dir():
        raise InputError(
            f"Cannot write {path}: a folder is there. Remove it or choose another place."
        )
    if temporary.is_dir():
        _note_files(temporary)
    if not path.is_dir():
        os.replace(temporary, path)
    else:
        _keep_foreign(path, temporary)
        if not _exchange(temporary, path):
            old = _beside(path, "old")
            os.rename(path, old)
            os.rename(temporary, path)
            temporary = old
        _remove(temporary)
    _sync_folder(path.parent)


def remove_leftovers(folder: Path, name: str = "") -> list[Path]:
    """Finish or undo what killed writers left in a folder; returns the files removed.

    A folder that was moved aside and not replaced yet is put back. Temporary files are removed once
    the process that made them is gone.

    Args:
        folder: The folder to tidy.
        name: Only leftovers of this file; all when empty.
    """
    removed = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            found = TEMPORARY.match(path.name)
            if not found or (name and found["name"] != name) or _alive(found["host"], found["pid"]):
                continue
            place = folder / found["name"]
            if path.suffix == ".old" and not place.exists():
                os.rename(path, place)
                continue
            _remove(path)
            removed.append(path)
    return removed


def tidy(folder: Path) -> list[Path]:
    """``remove_leftovers`` in a folder and every folder below it; the caller holds its lock."""
    removed = remove_leftovers(folder)
    for below in sorted(p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()):
        removed += remove_leftovers(below)
    return removed


@contextmanager
def writing(path: Path, seconds: float = 0) -> Iterator[None]:
    """Be the only writer of a file or folder, by a lock file ``.NAME.lock`` beside it.

    Args:
        path: The place that is written. A link is followed.
        seconds: How long to wait for another writer.

    Raises:
        ResourceError: Another process writes there.
    """
    path = followed(path)
    in_use = (
        f"{path} is being written by another mergeforget. Wait for it, or choose another place "
        "with --out."
    )
    with locked(path.parent / f".{path.name}.lock", in_use, seconds=seconds):
        yield


@contextmanager
def locked(
    path: Path,
    in_use: str,
    acquire: Callable[[Callable[[], None]], Any] | None = None,
    *,
    seconds: float = 0,
) -> Iterator[None]:
    """Hold a lock file; the operating system releases it when the process ends.

    On a file system without locks a file with the process id is used instead.

    Args:
        path: The lock file.
        in_use: Message for when another process holds the lock.
        acquire: Calls the function that takes the lock, for example in the main process only.
        seconds: How long to wait for another process.

    Raises:
        ResourceError: Another process holds the lock.
        InputError: The place cannot be written.
    """
    from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

    held: list[BaseFileLock] = []

    def acquire_within(lock: BaseFileLock) -> None:
        try:
            lock.acquire()
        except Timeout as error:
            if not seconds:
                raise ResourceError(in_use) from error
            say(f"Waiting for another process that holds {path}.")
            try:
                lock.acquire(timeout=seconds)
            except Timeout as late:
                raise ResourceError(in_use) from late

    def take() -> None:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock: BaseFileLock = FileLock(path, timeout=0)
                acquire_within(lock)
            except (OSError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                    raise
                lock = SoftFileLock(f"{path}.pid", timeout=0)
                acquire_within(lock)
        held.append(lock)

    if acquire is None:
        take()
    else:
        acquire(take)
    try:
        yield
    finally:
        for one in held:
            one.release()


def followed(path: Path) -> Path:
    """The place that a link points to, or the path itself where it is no link.

    Raises:
        InputError: The links form a circle, or the path cannot be read.
    """
    usable_path(path)
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links
        raise InputError(f"Cannot write {path}: {error}.") from error


def _beside(path: Path, suffix: str) -> Path:
    """A temporary name that says which process made it."""
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise InputError(
            f"Cannot write {path.name[:40]}...: the name has more than {NAME_BYTES} bytes. Choose "
            "a shorter one."
        )
    return path.parent / f".{path.name}.{_host()}-{os.getpid()}-{uuid4().hex[:8]}.{suffix}"


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


def _alive(host: str, pid: str) -> bool:
    """Whether the process may still run; one of another machine may."""
    if host != _host() or int(pid) == os.getpid():
        return True
    if sys.platform == "win32":  # os.kill would end the process there
        import psutil

        return bool(psutil.pid_exists(int(pid)))
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _note_files(folder: Path) -> None:
    """List in the folder's mark the files that we wrote, so that a later write knows the others."""
    for mark in (folder / name for name in MARKS):
        if mark.is_file():
            values = _read(mark)
            if isinstance(values, dict):
                values["files"] = sorted(_files(folder))
                mark.write_text(
                    json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                )
                _sync(mark)
            return


def _keep_foreign(old: Path, new: Path) -> None:
    """Copy files of the earlier folder that we did not write into the new one."""
    listed: set[str] | None = None
    for mark in (old / name for name in MARKS):
        with suppress(MergeforgetError):
            values = _read(mark) if mark.is_file() else None
            if isinstance(values, dict) and isinstance(values.get("files"), list):
                listed = set(map(str, values["files"]))
                break
    for name in _files(old):
        first = name.split("/")[0]
        ours = name in listed if listed is not None else OURS.fullmatch(first) is not None
        if ours or (new / name).exists() or TEMPORARY.match(first):
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(old / name, new / name, follow_symlinks=False)
        if not (new / name).is_symlink():
            _sync(new / name)


def _read(mark: Path) -> Any:
    return parse_json(read_text(mark), mark)


def _files(folder: Path) -> list[str]:
    return [
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_symlink() or not p.is_dir()
    ]


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one system call; False where the system or file system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap, arguments = libc.renamex_np, (os.fsencode(one), os.fsencode(other), 2)
        else:
            swap, here = libc.renameat2, -100  # AT_FDCWD
            arguments = (here, os.fsencode(one), here, os.fsencode(other), 2)
    except (AttributeError, OSError, TypeError):
        return False
    return bool(swap(*arguments) == 0)


def _sync(path: Path) -> None:
    """Flush a file, or every file and folder below a folder, to the disk."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    if path.is_dir():
        for folder in [path, *(p for p in path.rglob("*") if p.is_dir())]:
            _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder; some systems cannot, and lose at most the last rename."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there."
    except OSError:
        return ""
