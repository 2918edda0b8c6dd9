"""Reads JSON Lines, lists of rows or texts, and columns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mergeforget.data.sources.common import Records, faults_in, text_of
from mergeforget.errors import InputError
from mergeforget.parsing import parse_json, unique_keys


def json_file(path: Path) -> Records:
    """Read JSON Lines, a list of rows or texts, or an object of columns, whatever the file ending.

    A list of texts, as MUSE publishes its corpora, is a list of documents.
    """
    text = text_of(path)
    try:
        value = parse_json(text, path, pairs=unique_keys)
    except InputError:
        if text.lstrip().startswith("[") or re.match(r"\s*\{\s*\n", text):  # one indented document
            raise
        return json_lines(path, text)
    if isinstance(value, list):
        texts = all(isinstance(one, str) for one in value)
        rows = [{"text": one} for one in value] if texts else value
        return _objects(path, list(enumerate(rows, 1)))
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(v, dict | list) for v in value.values())
        and not any(isinstance(v, list) and v and isinstance(v[0], dict) for v in value.values())
    ):
        return _columns(path, value)
    return _objects(path, [(1, value)])


def json_lines(path: Path, text: str) -> Records:
    """Read one JSON object per line.

    Raises:
        InputError: Lines are no JSON or no objects; the message names up to five of them.
    """
    values, faults = [], []
    for line, content in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028
        if not content.strip():
            continue
        try:
            values.append((line, parse_json(content, f"line {line}", pairs=unique_keys)))
        except InputError as error:
            faults.append(str(error).rstrip("."))
    if faults:
        raise InputError(faults_in(path, faults))
    return _objects(path, values)


def _objects(path: Path, values: list[tuple[int, Any]]) -> Records:
    faults = [f"line {n}: not an object but {json.dumps(v)[:40]}" for n, v in values
              if not isinstance(v, dict)]  # fmt: skip
    if faults:
        raise InputError(faults_in(path, faults))
    return values


def _columns(path: Path, value: dict[str, Any]) -> Records:
    """Read columns ``{"id": {"0": ..., "1": ...}, "input": {...}}``, as written by pandas."""
    columns = {
        name: column if isinstance(column, dict) else {str(i): v for i, v in enumerate(column)}
        for name, column in value.items()
    }
    first, *others = columns
    for name in others:
        if columns[name].keys() != columns[first].keys():
            raise InputError(
                f"{path}: the columns {first!r} and {name!r} do not have the same rows "
                f"({len(columns[first])} and {len(columns[name])})."
            )
    keys = list(columns[first])
    return [(i, {name: columns[name][key] for name in columns}) for i, key in enumerate(keys, 1)]
