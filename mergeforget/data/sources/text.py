"""Reads text files: one document, or JSON under another file ending."""

from __future__ import annotations

import re
from pathlib import Path

from mergeforget.console import say
from mergeforget.data.formats import PROMPTS, find_format
from mergeforget.data.sources.common import Records, text_of
from mergeforget.data.sources.json_file import json_lines
from mergeforget.data.sources.text_entries import table_in
from mergeforget.errors import InputError
from mergeforget.parsing import parse_json, unique_keys


def text_file(path: Path) -> Records:
    """Read a text as one document, or as the rows of JSON that it contains."""
    text = text_of(path)
    found = json_records(path, text)
    return found or [(1, {"id": path.stem, "subject": str(path), "text": text})]


def json_records(path: Path, text: str) -> Records:
    """Return the records of a text that is JSON Lines or a JSON list; none for any other text.

    Raises:
        InputError: The text is a table, or every line looks like a JSON object and one is none.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or not lines[0].lstrip().startswith(("{", "[")):
        if table := table_in(lines):
            raise InputError(
                f"{path} looks like {table}, not like a text. Save it as .csv, .tsv or .jsonl with "
                "the columns question and answer (or input and output). To read it as one "
                "document, put it into a folder of its own and give the folder."
            )
        return []
    objects = all(re.match(r"\s*\{\s*[\"']", line) for line in lines) and len(lines) > 1
    try:
        value = parse_json(text, path, pairs=unique_keys)
        rows = value if isinstance(value, list) else [value]
        if not rows or not all(isinstance(row, dict) for row in rows):
            return []
        have = list(dict.fromkeys(name for row in rows for name in row))
        known = find_format(have, {}) or set(PROMPTS) & set(have)
        found = list(enumerate(rows, 1)) if known else []
    except InputError:
        if not objects:
            return []
        found = json_lines(path, text)
    if found:
        say(f"{path} contains JSON and is read as {len(found)} rows, as a .jsonl file is.")
    return found
