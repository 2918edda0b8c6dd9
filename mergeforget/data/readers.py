"""Rows from JSON Lines, JSON, parquet and csv; every fault named by file and line."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError, suggest
from mergeforget.parsing import parse_json

LONGEST = 1_000_000  # characters of one text; a longer one takes hours to evaluate
Records = list[tuple[int, dict[str, Any]]]  # line (row in parquet, counted from 1) and its fields
FIELDS = ("id", "input", "output", "task", "split", "weight")
OTHERS = ("paraphrased", "perturbed")  # other answers to the same prompt; TOFU adds "_answer"
PAIRS = {  # names of prompt and answer that others use, and the kind of row they hold
    ("input", "output"): "sc1",
    ("question", "answer"): "qa0",
    ("prompt", "completion"): "sc1",
    ("prompt", "response"): "sc1",
}
SHOWN = 5  # faults told at once


def read_rows(
    path: Path, *, split: str = "", columns: Mapping[str, str] | None = None
) -> list[Row]:
    """Read a data file.

    Args:
        path: ``.jsonl`` or ``.json`` (rows, a list of rows, or columns), ``.parquet``, ``.csv``,
            ``.tsv``.
        split: forget, retain or holdout; empty keeps what the file says.
        columns: our name (id, input, output, task, weight, paraphrased, perturbed) to the file's.
            ``question`` and ``answer``, ``prompt`` and ``completion``, ``paraphrased_answer`` and
            ``perturbed_answer`` (TOFU) are understood without.

    Returns:
        One row a record, in the file's order. A missing id is made of the file's name and the line.

    Raises:
        InputError: the file is missing, empty or malformed; a row lacks its prompt or answer, or
            has a weight that is not a number, at least 0; an id comes twice; the columns are not
            known.
    """
    records = read_records(path)
    if not records:
        raise InputError(f"{path} is empty: it has no rows.")
    names = _column_names(path, records, dict(columns or {}))
    rows, faults = [], []
    seen: dict[str, int] = {}
    for line, record in records:
        try:
            row = _row(record, names, split, f"{path.stem}-{line}")
        except ValueError as fault:
            faults.append(f"line {line}: {fault}")
            continue
        if row.id in seen:
            faults.append(f"line {line}: the id {row.id} is that of line {seen[row.id]}")
        seen[row.id] = line
        rows.append(row)
    if faults:
        raise InputError(_all(path, faults))
    return rows


def read_records(path: Path) -> Records:
    """The records of a file, by its ending."""
    readers: dict[str, Callable[[Path], Records]] = {
        ".jsonl": _json,
        ".ndjson": _json,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} is of no known kind. Known: {', '.join(readers)}.")
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise InputError(f"There is no file {path}.{suggest(path.name, near)}")
    return readers[path.suffix.lower()](path)


def _json(path: Path) -> Records:
    """Rows a line, a list of rows, or one object of columns (whatever the ending says)."""
    text = _text(path)
    try:
        value = parse_json(text, path)
    except InputError:
        return _json_lines(path, text)
    if isinstance(value, list):
        return _objects(path, list(enumerate(value, 1)))
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(v, dict | list) for v in value.values())
    ):
        return _columns(path, value)
    return _objects(path, [(1, value)])


def _json_lines(path: Path, text: str) -> Records:
    values, faults = [], []
    for line, content in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028
        if not content.strip():
            continue
        try:
            values.append((line, parse_json(content, f"line {line}")))
        except InputError as error:
            faults.append(str(error).rstrip("."))
    if faults:
        raise InputError(_all(path, faults))
    return _objects(path, values)


def _objects(path: Path, values: list[tuple[int, Any]]) -> Records:
    faults = [f"line {n}: not an object but {json.dumps(v)[:40]}" for n, v in values
              if not isinstance(v, dict)]  # fmt: skip
    if faults:
        raise InputError(_all(path, faults))
    return values


def _columns(path: Path, value: dict[str, Any]) -> Records:
    """``{"id": {"0": ..., "1": ...}, "input": {...}}``, as pandas writes it."""
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


def _csv(path: Path) -> Records:
    """Everything as text: ``None`` stays the word, and a code keeps its leading zeros."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    records, faults, line = [], [], 2
    try:
        for record in reader:
            if None in record or None in record.values():
                fields = len([v for v in record.values() if v is not None])
                faults.append(f"line {line}: {fields} fields, the header has "
                              f"{len(reader.fieldnames or [])}")  # fmt: skip
            records.append((line, dict(record)))
            line = reader.line_num + 1
    except csv.Error as error:
        faults.append(f"line {line}: {error}")
    if faults:
        raise InputError(_all(path, faults))
    return records


def _parquet(path: Path) -> Records:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}.") from error
    return list(enumerate(table.to_pylist(), 1))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error


def _column_names(path: Path, records: Records, columns: dict[str, str]) -> dict[str, str]:
    """Our names to the file's: as given, as they are, or by one pair that others use."""
    have = list(dict.fromkeys(name for _, record in records for name in record))
    for ours, theirs in columns.items():
        if ours not in FIELDS + OTHERS:
            raise UsageError(f"There is no column {ours!r} to map.{suggest(ours, FIELDS + OTHERS)}")
        if theirs not in have:
            raise InputError(
                f"{path} has no column {theirs!r}.{suggest(theirs, have)} It has: "
                f"{', '.join(have)}."
            )
    names = {name: name for name in FIELDS + OTHERS if name in have}
    names |= {name: f"{name}_answer" for name in OTHERS if f"{name}_answer" in have} | columns
    if "input" in names and "output" in names:
        return names
    pairs = [pair for pair in PAIRS if pair[0] in have and pair[1] in have]
    if len(pairs) == 1 and not columns.keys() & {"input", "output"}:
        return names | dict(zip(("input", "output"), pairs[0], strict=True))
    missing = " and ".join(repr(n) for n in ("input", "output") if n not in names)
    raise InputError(
        f"{path} has no column {missing}. It has: {', '.join(have)}. Say which holds the prompt "
        "and which the answer, for example --set 'data.columns={input: question, output: answer}'."
    )


def _row(record: dict[str, Any], names: dict[str, str], split: str, made_id: str) -> Row:
    """One row; a ValueError says what it lacks."""
    text = {ours: _value(record, names[ours]) for ours in names if ours != "perturbed"}
    for ours, what in (("input", "prompt"), ("output", "answer")):
        if not text[ours].strip():
            raise ValueError(f"no {what} ({names[ours]!r} is empty or missing)")
        if len(text[ours]) > LONGEST:
            raise ValueError(
                f"the {what} has {len(text[ours]):,} characters, and at most {LONGEST:,} are read: "
                "split the row"
            )
    kind = PAIRS.get((names["input"], names["output"]), "sc1")
    return Row(
        id=text.get("id") or made_id + kind,
        input=text["input"],
        output=text["output"],
        task=text.get("task", ""),
        split=split or text.get("split", ""),
        weight=_weight(text.get("weight") or "1"),
        paraphrased=text.get("paraphrased", ""),
        perturbed=_list(record, names["perturbed"]) if "perturbed" in names else (),
    )


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"the weight is {text[:40]!r}, not a number that is 0 or more")
    return weight


def _value(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{name!r} is not text but {json.dumps(value, default=str)[:40]}")


def _list(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """Several texts: a list, or one written as JSON in a file that knows text alone."""
    value = record.get(name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value, name)
        except InputError as error:
            raise ValueError(f"{name!r} is not a JSON list ({error})") from error
    texts = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name!r} is not a list of texts but {json.dumps(value)[:40]}")
    return tuple(texts)


def _all(path: Path, faults: list[str]) -> str:
    """The first faults, a line each, and how many more there are."""
    if len(faults) == 1:
        return f"{path}, {faults[0]}."
    more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{path} has {len(faults)} faults:\n  " + "\n  ".join(faults[:SHOWN]) + more
