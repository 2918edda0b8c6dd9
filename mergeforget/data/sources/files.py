"""Reads a file by its ending. To add a type of file, add its reader to ``FILE_TYPES``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mergeforget.data.sources.common import Records
from mergeforget.data.sources.json_file import json_file
from mergeforget.data.sources.table import csv_file, parquet_file
from mergeforget.data.sources.text import text_file
from mergeforget.data.sources.text_entries import kind_of_text
from mergeforget.errors import InputError, suggest

FILE_TYPES: dict[str, Callable[[Path], Records]] = {
    ".jsonl": json_file,
    ".ndjson": json_file,
    ".json": json_file,
    ".csv": csv_file,
    ".tsv": csv_file,
    ".parquet": parquet_file,
    ".txt": text_file,
    ".md": text_file,
}
OTHER_TYPES = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "Unpack it first."),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as .csv."),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".odt", ".rtf", ".html"), "Save its text as .txt."),
    ".arrow": "Give the folder that save_to_disk of the package datasets wrote.",
}


def read_file(path: Path) -> Records:
    """Read the records of a file.

    Raises:
        InputError: The file is missing, has an unknown ending, or is malformed.
    """
    reader = FILE_TYPES.get(path.suffix.lower())
    if reader is None:
        hint = OTHER_TYPES.get(path.suffix.lower(), "") if path.is_file() else ""
        raise InputError(
            f"{path} has an unknown file type. Supported types: {', '.join(FILE_TYPES)}."
            + (f" {hint}" if hint else "" if path.exists() else _hint_of_text(str(path)))
        )
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise InputError(f"There is no file {path}.{suggest(path.name, near)}")
    return reader(path)


def _hint_of_text(text: str) -> str:
    """Return how to forget a name, a question or a text that was given in place of a file."""
    if " " not in text.strip() and ("/" in text or Path(text).suffix):
        return ""
    return (
        f" There is no such file. To forget the {kind_of_text(text)} itself, give a list "
        f"in Python, forget=[{text!r}], or write it to a .txt file, one per line."
    )
