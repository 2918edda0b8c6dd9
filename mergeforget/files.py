"""Read text, JSON and JSON Lines, and write them atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergeforget.errors import InputError, MergeforgetError, NumericError
from mergeforget.parsing import parse_json, read_text
from mergeforget.replace import explained as explained
from mergeforget.replace import replacing as replacing
from mergeforget.replace import take_place as take_place


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write indented JSON atomically.

    Args:
        durable: Wait until the file is on the disk. Otherwise it is written in place, which suits
            the files of a folder that is moved to its place as a whole.

    Raises:
        NumericError: A number is NaN or infinite, which is not valid JSON.
    """
    text = _json(value, path, indent=2) + "\n"
    if durable:
        write_text(path, text)
    else:
        path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    return parse_json(read_text(path), path)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        InputError: The file is missing, is not JSON, or contains another value such as null.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} does not contain a JSON object but {str(value)[:40]!r}.")
    return value


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Report a missing key or a value of another type as an InputError that names the file.

    Use it around the few lines that take values out of a parsed file.

    >>> with reading("a.json"):
    ...     {}["nll"]
    Traceback (most recent call last):
    mergeforget.errors.InputError: a.json is damaged: 'nll' is missing. Restore it from a copy, ...
    """
    try:
        yield
    except MergeforgetError:
        raise
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        reason = (
            f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        )
        raise InputError(
            f"{path} is damaged: {reason[:200]}. Restore it from a copy, or delete it and repeat "
            "the command that writes it."
        ) from error


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]], *, sync: bool = True) -> None:
    """Append rows, one JSON object per line, and flush them to the disk.

    Args:
        sync: Wait until they are on the disk. Otherwise they survive a killed process, but not a
            power failure, until ``sync_file`` is called.
    """
    text = "".join(_json(row, path) + "\n" for row in rows)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        with open(path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            if sync:
                os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows atomically, one JSON object per line."""
    write_text(path, "".join(_json(row, path) + "\n" for row in rows))


def jsonl_text(rows: Iterable[dict[str, Any]]) -> str:
    """Return the text that ``write_jsonl`` writes."""
    return "".join(_json(row, "the rows") + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows that ``append_jsonl`` wrote; see ``read_lines``."""
    return [row for _, row in read_lines(path)]


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read JSON Lines with line numbers, starting at 1; a missing file has no lines.

    A last line without a line feed that is not JSON was cut off by a kill and is ignored.

    Raises:
        InputError: Another line is damaged; the message names it.
    """
    if not path.exists():
        return []
    try:
        # splitlines would also split at U+2028, which a row may contain
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise InputError(f"{where} is not a JSON object.")
        except InputError as error:
            if number == len(lines):
                continue
            raise InputError(
                f"{error} Restore the file from a copy, or delete the line and measure again what "
                "it recorded."
            ) from error
        rows.append((number, row))
    return rows


def sha256(path: Path) -> str:
    """Return the hash of a file, or of the files of a folder with their relative names."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _json(value: Any, where: object, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NumericError(
            f"{where} was not written, because a value is NaN or infinite."
        ) from error


def _end_last_line(path: Path) -> None:
    """Remove an incomplete last line, or add a missing line feed to a complete one."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        tail, start = b"", size
        while start and b"\n" not in tail:
            start = max(0, start - (1 << 16))
            file.seek(start)
            tail = file.read(size - start)
        last = tail.rpartition(b"\n")[2]
        if not last:
            return
        try:
            parse_json(last, path)
        except InputError:
            file.truncate(size - len(last))
        else:
            file.write(b"\n")
