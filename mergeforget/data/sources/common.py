"""Functions that the readers of all sources share: decoding, limits, messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergeforget.errors import InputError

Records = list[tuple[int, dict[str, Any]]]  # line (or row in parquet, from 1) and its fields
SHOWN = 5  # maximum number of faults in one message
TEXTS = (".txt", ".md")
LINES = (*TEXTS, ".csv", ".tsv")  # in JSON, an escaped \\r\\n is part of a text


def text_of(path: Path) -> str:
    """Read a UTF-8 file; lines of a text or a table that end as on Windows end in a newline."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    if "\0" in text:  # UTF-16 without a byte order mark is valid UTF-8 if its text is ASCII
        line = text.partition("\0")[0].count("\n") + 1
        raise InputError(
            f"{path}, line {line}: not a text but binary or UTF-16. Save the file as UTF-8."
        )
    return text.replace("\r\n", "\n") if path.suffix.lower() in LINES else text


def faults_in(path: Path, faults: list[str]) -> str:
    """Return a message with the first faults, one per line, and the number of others."""
    if len(faults) == 1:
        return f"{path}, {faults[0]}."
    more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{path} has {len(faults)} faults:\n  " + "\n  ".join(faults[:SHOWN]) + more


def repeated_name(names: Iterable[str]) -> str:
    """Return a name of several columns, of which only the last would be read; empty if none is."""
    return next((name for name, count in Counter(names).items() if count > 1 and name), "")
