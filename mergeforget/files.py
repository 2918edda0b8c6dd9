"""Files that appear whole or not at all, and the small formats every step reads and writes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from mergeforget.errors import InputError, MergeforgetError, ResourceError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file or folder beside ``path`` that takes its place when the block succeeds.

    The block creates whatever it likes at the yielded path. A failure leaves what stood at
    ``path`` before untouched.

    Raises:
        ResourceError: the disk is full.
        InputError: the place cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid4().hex[:8]}.tmp"
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
        yield
    except MergeforgetError:
        raise
    except Exception as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if (isinstance(reason, OSError) and reason.errno in NO_SPACE) or "os error 28" in str(
            error
        ):
            raise ResourceError(
                f"The disk is full: {path} was not written, and nothing that was there is lost. "
                f"{_free(path)} Free some space, or choose another place with --out, and run the "
                "same command again."
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows, one JSON object a line, and flush them to the disk."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with explained(path), open(path, "ab") as file:
        if file.tell() and not _ends_with_newline(path):
            file.write(b"\n")  # the last writer was cut off in the middle of a line
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows, one JSON object a line, whole or not at all."""
    write_text(path, jsonl_text(rows))


def jsonl_text(rows: Iterable[dict[str, Any]]) -> str:
    """What ``write_jsonl`` writes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what ``append_jsonl`` wrote; a line cut off by a kill is left out.

    A missing file has no rows.
    """
    if not path.exists():
        return []
    rows = []
    # not splitlines: it also splits at U+2028, which a row may hold
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read JSON lines strictly: (line number from 1, object); a missing file has none.

    Only the last line may be damaged, when it has no line end: a kill cut it off.

    Raises:
        InputError: another line is not a JSON object.
    """
    found = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.split("\n")  # not splitlines: it also splits at U+2028
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):
                continue
            raise InputError(
                f"{path}, line {number} is not a JSON object ({error}). Restore the file from a "
                "copy, or delete the line and measure again what it held."
            ) from error
        found.append((number, row))
    return found


def sha256(path: Path) -> str:
    """Hash of a file, or of every file in a folder with its relative name."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _sync(path: Path) -> None:
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())


def take_place(temporary: Path, path: Path) -> None:
    """Put a file or folder where ``path`` is, in one step for whoever looks."""
    if path.is_dir():  # os.replace cannot put a folder over one that has files
        old = path.parent / f".{path.name}.{uuid4().hex[:8]}.old"
        os.rename(path, old)
        os.rename(temporary, path)
        _remove(old)
    else:
        os.replace(temporary, path)


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
