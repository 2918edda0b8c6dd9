"""Replace files and folders atomically, keep the user's own files in them, and lock them.

A result is written under a temporary name next to its path, flushed to the disk, and exchanged
with the earlier one in one system call. A process that is killed leaves either the earlier or the
new result, and a temporary file that the next writer of the same path removes.
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
MARKS = ("export.json", "candidate.json")  # their key "files" lists the files that we wrote
TEMPORARY = re.compile(
    r"^\.(?P<name>.+)\.(?P<host>[0-9a-f]{4})-(?P<pid>\d+)-[0-9a-f]{8}\.(tmp|old)$"
)
OURS = re.compile(  # files that this package, PEFT or transformers write into a model folder
    r"(README\.md|LICENSE|NOTICE|.*\.(json|jsonl|safetensors|jinja|model|tiktoken)"
    r"|(vocab|merges|spiece|tokenizer)[\w.-]*)"
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block succeeds.

    The block creates a file or a folder at the yielded path. If it fails, ``path`` is unchanged. A
    link is followed: its target is replaced, not the link.

    Raises:
        ResourceError: The disk is full.
        InputError: The path cannot be written.
    """
    with explained(path):
        path = link_target(path)
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
    """Convert errors of the operating system about ``path`` into an InputError."""
    try:
        with full_disk_explained(path):
            yield
    except BrokenPipeError:  # of stdout: the command line ends quietly
        raise
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Convert any library's error about a full disk or a too large file into a ResourceError."""
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
            f"The disk is full or a file is too large: {path} was not written, and its earlier "
            f"content is unchanged. {_free(path)} Free some space, or choose another folder with "
            "--out, and run the same command again, with --resume for train and train-pair."
        ) from error


def take_place(temporary: Path, path: Path) -> None:
    """Exchange a finished file or folder with the one at ``path``, in one step if possible.

    Files in an earlier folder that this package did not write are copied into the new one. A link
    at ``path`` is kept: its target is replaced.
    """
    path = link_target(path)
    for leftover in [p for p in temporary.rglob(".*") if TEMPORARY.match(p.name)]:
        _remove(leftover)  # of a write inside the folder that was killed
    if temporary.is_dir() and not path.is_dir() and (path.exists() or path.is_symlink()):
        raise InputError(
            f"Cannot write {path}: a file exists there. Remove it or choose another path."
        )
    if not temporary.is_dir() and path.is_dir():
        raise InputError(
            f"Cannot write {path}: a folder exists there. Remove it or choose another path."
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
    """Clean up after killed writers in a folder; return the files removed.

    A folder that was moved aside and not yet replaced is moved back. Temporary files are removed if
    the process that created them has ended.

    Args:
        folder: The folder to clean up.
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
    """Clean up a folder and every folder below it; the caller must hold its lock."""
    removed = remove_leftovers(folder)
    for below in sorted(p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()):
        removed += remove_leftovers(below)
    return removed


@contextmanager
def write_lock(path: Path, seconds: float = 0) -> Iterator[None]:
    """Hold the write lock of a file or folder: ``.NAME.lock`` next to it.

    Args:
        path: The file or folder. A link is followed.
        seconds: Maximum time to wait for another writer.

    Raises:
        ResourceError: Another process holds the lock.
    """
    path = link_target(path)
    in_use = (
        f"{path} is being written by another mergeforget. Wait for it, or choose another folder "
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

    On a file system without locks, a file with the process id is used instead.

    Args:
        path: The lock file.
        in_use: Message for when another process holds the lock.
        acquire: Function that calls its argument, which takes the lock, for example in the main
            process only.
        seconds: Maximum time to wait for another process.

    Raises:
        ResourceError: Another process holds the lock.
        InputError: The path cannot be written.
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


def link_target(path: Path) -> Path:
    """Return the target of a link, or the path itself if it is not a link.

    Raises:
        InputError: The links form a circle, or the path cannot be read.
    """
    usable_path(path)
    try:
        target = path.resolve() if path.is_symlink() else path
        if target.is_symlink():  # from Python 3.13 on, resolve does not raise on a circle of links
            raise OSError("its symbolic links form a circle")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links
        raise InputError(f"Cannot write {path}: {error}.") from error
    return target


def _beside(path: Path, suffix: str) -> Path:
    """Return a temporary path whose name contains the host and the process id."""
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise InputError(
            f"Cannot write {path.name[:40]}...: the name has more than {NAME_BYTES} bytes. Choose "
            "a shorter one."
        )
    return path.parent / f".{path.name}.{_host()}-{os.getpid()}-{uuid4().hex[:8]}.{suffix}"


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


def _alive(host: str, pid: str) -> bool:
    """Return whether a process may still run, as any process on another machine may."""
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
    """List the files that we wrote in export.json or candidate.json, for the next writer."""
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
    """Copy the files that we did not write from the earlier folder into the new one."""
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
    """Swap two names in one system call; return False if that is not supported."""
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
    """Flush the names in a folder; systems without this lose at most the last rename."""
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
