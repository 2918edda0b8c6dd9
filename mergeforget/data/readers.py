"""Reads rows from files, folders and the hub; errors name file and line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from mergeforget.console import say
from mergeforget.data.fields import (
    ROLES,
    TOOLS,
    answered_questions,
    entries_of,
    iso_text,
    kind_of_text,
    kinds_of_list,
    table_in,
)
from mergeforget.data.formats import (
    FIELDS,
    OTHERS,
    Format,
    Turns,
    find_format,
    unread_text,
    with_authors,
)
from mergeforget.data.schema import Row, with_own_subjects
from mergeforget.errors import InputError, UsageError, reason_of, suggest
from mergeforget.parsing import parse_json, unique_keys, usable_path

Records = list[tuple[int, dict[str, Any]]]  # line (or row in parquet, from 1) and its fields
SplitCheck = Literal["", "part", "any"]  # refuse a part of the rows; any: warn of all
LONGEST_PATH = 250  # characters; a longer text is not the name of a file
SHOWN = 5  # maximum number of faults in one message
HUB = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.+-]+))?(/(?P<split>[\w.-]+))?")
SAVED = ("state.json", "dataset_dict.json")  # written by datasets' save_to_disk
TEXTS = (".txt", ".md")
LINES = (*TEXTS, ".csv", ".tsv")  # in JSON, an escaped \\r\\n is part of a text
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
DATA_FILES = ("*.jsonl", "*.ndjson", "*.json", "*.parquet", "*.csv", "*.tsv", "*/*.parquet",
              "*/*.jsonl")  # fmt: skip
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", *SAVED)  # of a data set, not its rows
SETS = ("forget", "retain", "holdout")
OF_SET = re.compile(r"(forget|retain|holdout)(?![^\W\d_])", re.IGNORECASE)  # at the start of a name
CARD = re.compile(r"(readme|license|licence|changelog|contributing|citation)\b", re.IGNORECASE)
INSTALL = "pip install 'mergeforget[hub]'"
END = re.compile(  # tokens that end a text or a turn, written out
    r"(\s*(</s>|<eos>|<end_of_turn>|<\|(im_end|endoftext|end_of_text|end_of_turn|eot_id|eom_id|eot|"
    r"eos|end|return)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>))+\s*$"
)


TEXT_KEYS = {"id", "subject", "text"}  # of a record that is a text, and of a text file
UNKNOWN = "unknown"  # stands for the answer of a record that has none
LABELS = frozenset(  # columns of a table of questions that are no answers
    "id subject task split weight category type topic source author language index".split()
)


PROMPTS = {  # usual columns of prompts, and the columns of answers that make them a format
    "question": "answer", "input": "output", "prompt": "completion", "instruction": "output",
    "name": "output",
}  # fmt: skip


def read_rows(
    path: Path,
    *,
    split: str = "",
    columns: Mapping[str, str] | None = None,
    turns: Turns = "last",
    check_split: SplitCheck = "",
) -> list[Row]:
    """Read a data set.

    Args:
        path: File (``.jsonl``, ``.json``, ``.parquet``, ``.csv``, ``.tsv``, ``.txt``, ``.md``),
            folder of ``.txt`` or ``.md`` files, or of files that are named after the sets, or data
            set on the Hub, ``name[:config][/split]``.
        split: forget, retain or holdout; empty keeps the split in the file.
        columns: Names of columns in the file by our names (id, input, output, instruction,
            messages, text, subject, task, weight, paraphrased, perturbed). Common names are
            recognised; see ``docs/data.md``.
        turns: Make a row of the last assistant turn of a conversation, or of every one.
        check_split: Refuse a file whose column ``split`` names another set than ``split`` in a part
            of the rows; ``any`` also warns if it does in all rows.

    Returns:
        One row per record, in the order of the file; several for a document longer than a window
        and for the turns of a conversation. A missing id is made of file name and line.

    Raises:
        InputError: The file is missing, empty or malformed; a row lacks its prompt or answer, has
            a missing value (NaN) or an invalid weight; an id occurs twice; the columns are unknown.
    """
    path = file_of_set(path, split)
    records = read_records(path)
    texts = [record.get("text") for _, record in records if record.keys() <= TEXT_KEYS]
    if len(texts) == len(records) and not path.is_dir():
        _warn_of_list(path, [text for text in texts if isinstance(text, str)])
    return rows_of_records(
        records, path, split=split, columns=columns, turns=turns, check_split=check_split
    )


def rows_of_records(
    records: Records,
    path: Path,
    *,
    split: str = "",
    columns: Mapping[str, str] | None = None,
    turns: Turns = "last",
    check_split: SplitCheck = "",
    suffix: str | None = None,
    unit: str = "line",
) -> list[Row]:
    """Convert records to rows; arguments and errors as in ``read_rows``.

    Args:
        path: File of the records, for messages, missing ids and missing subjects.
        suffix: Ending of generated ids; that of the format when omitted.
        unit: Noun for the number of a record in messages.
    """
    if not records:
        raise InputError(f"{path} is empty: it has no rows.")
    form = _format_of(path, records, dict(columns or {}))
    form = form if suffix is None else replace(form, suffix=suffix)
    if check_split:
        _check_split(path, records, form.names.get("split", ""), split, check_split)
    rows: list[Row] = []
    faults = []
    seen: dict[str, int] = {}
    for line, record in records:
        try:
            made = form.rows(record, f"{path.stem}-{line}", split, turns, f"{path}-{line}")
        except ValueError as fault:
            of_folder = path.is_dir() and str(record.get("subject", "")).endswith(".txt")
            faults.append(
                f"{Path(record['subject']).name if of_folder else f'{unit} {line}'}: {fault}"
            )
            continue
        for row in made:
            if row.id in seen:
                faults.append(
                    f"{unit} {line}: the id {row.id} is already used in {unit} {seen[row.id]}"
                )
            seen[row.id] = line
        rows += made
    if faults:
        raise InputError(_all(path, faults))
    rows = _without_ends(path, rows if "subject" in form.names else with_own_subjects(rows))
    _warn_of_unread(path, [record for _, record in records], form, turns)
    grouped = form.suffix == "qa0" and not form.names.keys() & {"id", "subject"}
    return with_authors(rows) if grouped else rows


def _warn_of_unread(
    path: Path, records: Sequence[dict[str, Any]], form: Format, turns: Turns
) -> None:
    """Name the columns, the assistant turns and the further answers that are not read."""
    for name in unread_text(records, form.read):
        say(
            f"Warning: {path}: the column {name!r} looks like text and is not read."
            + form.advice("" if any(isinstance(r.get(name), list) for r in records) else name)
        )
    if turns == "last" and (earlier := sum(map(form.earlier_answers, records))):
        say(
            f"Warning: {path}: {earlier} earlier assistant turns are not read as answers, only as "
            "context of the last one. --turns every (data.turns in a recipe) makes a row of each."
        )
    if several := sum(len(form.further_answers(record)) > 0 for record in records):
        say(
            f"Warning: {path}: {several} rows have several different answers; the first one is "
            "read. To use the others, give each its own row."
        )


def _check_split(path: Path, records: Records, column: str, split: str, check: SplitCheck) -> None:
    """Raise InputError if the column of splits names another set than the one that is read.

    Other values, such as ``train``, are no sets. The holdout set of LUME has rows of both forget
    and retain: there, the column names the set of which a row is like.
    """
    if split not in SETS or not column:
        return
    named = Counter(str(record.get(column)).strip().lower() for _, record in records)
    others = {name: n for name, n in named.items() if name in SETS and name != split}
    if not others:
        return
    another = sum(others.values()) == len(records)  # a file for another purpose
    if another and (len(others) == 1 or split == "holdout"):
        if check == "any":
            say(
                f"Warning: every row of {path} has {column} {' or '.join(map(repr, others))}, but "
                f"is read as a row of the {split} set."
            )
        return
    found = " and ".join(f"{n} of {len(records)} rows have {column} {name!r}"
                         for name, n in others.items())  # fmt: skip
    where = " and ".join(f"--{name}" for name in others)
    raise InputError(
        f"{path} is read as the {split} set, but {found}. Write them to a file of their own and "
        f"give it with {where}. If all rows belong to the {split} set, remove the column."
    )


def _warn_of_list(path: Path, texts: Sequence[str]) -> None:
    """Warn of names, questions, or questions with answers that are read as documents."""
    if len(texts) == 1 and path.suffix.lower() in TEXTS:
        listed = [entry.kind for entry in entries_of(texts[0]).entries]
        pairs = _pairs_in(texts[0])
    else:
        listed, pairs = list(kinds_of_list(texts)), 0
    kinds = Counter(str(kind) for kind in listed)
    if pairs:
        kinds = Counter({"question with an answer": pairs})
    elif kinds["document"] or kinds.total() < 2:
        return
    lists = " and ".join(f"{n} {kind}s" for kind, n in kinds.items())
    lists = f"{pairs} questions with answers" if pairs else lists
    how = "the text of one document" if len(texts) == 1 else f"the texts of {len(texts)} documents"
    say(
        f"Warning: {path} is read as {how}. It looks like a list of {lists}: "
        f"`mergeforget unlearn --forget {path}` asks about each of them."
    )


def _pairs_in(text: str) -> int:
    try:
        return len(answered_questions(text))
    except ValueError:  # malformed pairs, or a conversation: a document
        return 0


def _without_ends(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Remove end-of-text tokens that are written at the end of answers, with a message.

    The tokenizer or the template adds its own. Generation stops there, so that an answer with the
    token in its text would never be repeated.
    """
    found, marks = [], Counter[str]()
    for row in rows:
        end = None if row.window else END.search(row.output)
        if end is not None and row.output[: end.start()].strip():
            marks[end[0].strip()] += 1
            row = replace(row, output=row.output[: end.start()])
        found.append(row)
    if marks:
        say(
            f"{path}: {marks.total()} answers end in {' or '.join(map(repr, marks))}. It was "
            "removed, because the tokenizer adds the token that ends an answer."
        )
    return found


def read_records(path: Path) -> Records:
    """Read the records of a file, of a folder of texts, or of a data set on the Hub.

    JSON in a text file is read as in a ``.jsonl`` file; see ``file_of_set`` for other folders.
    """
    if usable_path(path).is_dir():
        return _folder(path)
    readers: dict[str, Callable[[Path], Records]] = {
        ".jsonl": _json,
        ".ndjson": _json,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
        ".txt": _text_file,
        ".md": _text_file,
    }
    suffix = path.suffix.lower()
    if suffix not in readers and not path.is_file():
        if (
            not suffix
            and path.parent != Path()
            and path.parent.is_dir()
            and (_data_files(path.parent))
        ):
            return _hub(path, {"name": str(path.parent), "config": None, "split": path.name})
        if hub := _hub_name(path):
            return _hub(path, hub)
    if suffix not in readers:
        raise InputError(
            f"{path} has an unknown file type. Supported types: {', '.join(readers)}."
            + ("" if path.exists() else _hint_of_text(str(path)))
        )
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise InputError(f"There is no file {path}.{suggest(path.name, near)}")
    return readers[suffix](path)


def _hint_of_text(text: str) -> str:
    """Return how to forget a name, a question or a text that was given in place of a file."""
    if " " not in text.strip() and ("/" in text or Path(text).suffix):
        return ""
    return (
        f" There is no such file. To forget the {kind_of_text(text)} itself, give a list "
        f"in Python, forget=[{text!r}], or write it to a .txt file, one per line."
    )


def _text_file(path: Path) -> Records:
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
        found = _json_lines(path, text)
    if found:
        say(f"{path} contains JSON and is read as {len(found)} rows, as a .jsonl file is.")
    return found


def _json(path: Path) -> Records:
    """Read JSON Lines, a list of rows or texts, or an object of columns, whatever the file ending.

    A list of texts, as MUSE publishes its corpora, is a list of documents.
    """
    text = text_of(path)
    try:
        value = parse_json(text, path, pairs=unique_keys)
    except InputError:
        if text.lstrip().startswith("[") or re.match(r"\s*\{\s*\n", text):  # one indented document
            raise
        return _json_lines(path, text)
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


def _json_lines(path: Path, text: str) -> Records:
    values, faults = [], []
    for line, content in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028
        if not content.strip():
            continue
        try:
            values.append((line, parse_json(content, f"line {line}", pairs=unique_keys)))
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


def _csv(path: Path) -> Records:
    """Read all fields as text: ``None`` remains a word, and codes keep leading zeros."""
    csv.field_size_limit(sys.maxsize)
    text = text_of(path)
    header = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter not in header:  # a spreadsheet exports semicolons where the comma is decimal
        delimiter = next((sign for sign in ";\t" if sign in header), delimiter)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, faults, line = [], [], 2
    try:
        if twice := _repeated(reader.fieldnames or []):
            raise InputError(f"{path}: the header has several columns {twice!r}. Rename them.")
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


def _repeated(names: Iterable[str]) -> str:
    """Return a name of several columns, of which only the last would be read; empty if none is."""
    return next((name for name, count in Counter(names).items() if count > 1 and name), "")


def file_of_set(path: Path, split: str) -> Path:
    """Return the file of a set in a folder whose files are named after the sets.

    Such as ``forget.jsonl`` of the folder that ``mergeforget data make`` writes, or a split that
    ``datasets`` has saved. Any other path is returned unchanged.

    Args:
        split: forget, retain or holdout; any other value names no set.

    Raises:
        InputError: The folder has files of several sets, and none or several of this one.
    """
    if not usable_path(path).is_dir():
        return path
    if any((path / name).is_file() for name in SAVED):
        saved = path / split
        return saved if split in SETS and (saved / SAVED[0]).is_file() else path
    files = [file for file in [*_data_files(path), *_documents(path)] if file.parent == path]
    of_sets = {file: found[1].lower() for file in files if (found := OF_SET.match(file.stem))}
    others = [file.name for file in files if file not in of_sets]
    if not of_sets:
        return path
    own = [file for file, name in of_sets.items() if name == split]
    names = ", ".join(sorted(file.name for file in of_sets))
    if not own and split not in SETS and len(of_sets) == 1:
        own = list(of_sets)
    if len(own) != 1:
        what = f"{len(own)} files of the {split} set" if split in SETS else "files of several sets"
        raise InputError(
            f"{path} has {what}: {names}. Name one file, for example {path / min(of_sets).name}."
        )
    unread = f" Not read: {', '.join(others)}." if others else ""
    say(f"{path}: {own[0].name} is read as the {split or 'given'} set.{unread}")
    return own[0]


def _visible(path: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, without hidden ones."""
    return sorted(
        file for file in path.glob(pattern)
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )  # fmt: skip


def _data_files(path: Path) -> list[Path]:
    """Return the files with rows in a folder and, of data sets on the Hub, its subfolders."""
    found = (file for pattern in DATA_FILES for file in _visible(path, pattern))
    return [file for file in found if file.name not in DESCRIPTIONS]


def _documents(path: Path) -> list[Path]:
    """Return the texts in a folder and its subfolders, without the description of a data set."""
    texts = [file for ending in TEXTS for file in _visible(path, f"**/*{ending}")]
    return sorted(
        file for file in texts if file.suffix.lower() == ".txt" or not CARD.match(file.name)
    )


def _folder(path: Path) -> Records:
    """Read a saved data set, or one document per text file of a folder and its subfolders."""
    documents, data = _documents(path), _data_files(path)
    if any((path / name).is_file() for name in SAVED):
        return _hub(path, {"name": str(path), "config": None, "split": None})
    if documents and data:
        raise InputError(
            f"{path} has texts ({_some(path, documents)}) and data files ({_some(path, data)}), so "
            "it is not clear which to read. Give one of the files, or move the others elsewhere."
        )
    if not documents and not data:
        raise InputError(
            f"{path} is a folder without .txt files. Pass a data file, a folder of documents as "
            ".txt or .md files, or a data set that `datasets` has saved."
        )
    if not documents:
        return _hub_folder(path, data)
    known = {*documents, *_visible(path, "**/*.md")}
    others = [file for file in _visible(path, "**/*") if file not in known]
    if len(documents) > 1 or others:
        unread = f" Not read: {_some(path, others)}." if others else ""
        say(f"{path}: {len(documents)} documents are read: {_some(path, documents)}.{unread}")
    records = []
    for i, file in enumerate(documents, 1):
        name = file.relative_to(path).with_suffix("").as_posix()
        records.append((i, {"id": name, "subject": str(file), "text": text_of(file)}))
    return records


def _hub_folder(path: Path, files: Sequence[Path]) -> Records:
    """Read a folder in the layout of a data set on the Hub, with one or several data files.

    Raises:
        InputError: The files have several types, of which ``datasets`` reads one.
    """
    card = path / "README.md"
    configured = card.is_file() and "data_files" in card.read_text("utf-8", errors="replace")
    lines = (".jsonl", ".ndjson", ".json")  # of one reader
    types = {".json" if file.suffix.lower() in lines else file.suffix.lower() for file in files}
    if len(types) > 1 and not configured:
        raise InputError(
            f"{path} has data files of several types: {_some(path, files)}. Give one of the files."
        )
    return _hub(path, {"name": str(path), "config": None, "split": None})


def _read_files(path: Path, files: Sequence[Path]) -> Records:
    """Read the files of a split, all values as written: ``datasets`` reads ``0012`` as 12."""
    if len(files) == 1:
        return read_records(files[0])
    records = [record for file in files for _, record in read_records(file)]
    say(f"{path}: {len(records)} rows are read from {_some(path, files)}.")
    return list(enumerate(records, 1))


def _some(path: Path, files: Sequence[Path]) -> str:
    """Return the first file names of a folder, and the number of others."""
    names = [Path(os.path.relpath(file, path)).as_posix() for file in files]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _hub_name(path: Path) -> dict[str, str | None] | None:
    """Parse ``name[:config][/split]``; None if it cannot name a data set on the Hub."""
    if path.is_absolute() or path.parts[0] in (".", ".."):
        return None
    text = path.as_posix()
    if ":" not in text and text.count("/") == 2:
        name, _, split = text.rpartition("/")
        return {"name": name, "config": None, "split": split}
    match = HUB.fullmatch(text)
    return match.groupdict() if match and ("/" in text or ":" in text) else None


def _hub(path: Path, where: Mapping[str, str | None]) -> Records:
    """Load the records of a cached or downloadable data set."""
    name, config, split = where["name"] or "", where["config"], where["split"]
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"There is no file {path}, and data sets from the Hub need the package datasets: "
            f"{INSTALL}"
        ) from error
    saved = any((path / file).is_file() for file in SAVED)
    local = not saved and Path(name).is_dir()
    try:
        if saved:
            dataset = datasets.load_from_disk(str(path))
        elif local:
            found = datasets.load_dataset_builder(name, config).config.data_files.items()
            dataset = {str(key): [Path(file) for file in files] for key, files in found}
        else:
            dataset = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # for example an unknown name, no network, or a refused script
        if saved:
            raise InputError(
                f"The data set saved in {path} could not be loaded: {reason_of(error)} The package "
                f"datasets cannot load a split without rows; name another one: {path}/SPLIT."
            ) from error
        raise InputError(
            f"There is no file {path}, and the data set {name!r} could not be loaded from the hub: "
            f"{reason_of(error)} Check the path, the name and the connection; "
            "cached data sets work offline."
        ) from error
    if isinstance(dataset, dict):
        chosen = split or (next(iter(dataset)) if len(dataset) == 1 else "train")
        if chosen not in dataset:
            raise InputError(
                f"The data set {name} has the splits {', '.join(dataset)}. Name one: {name}/SPLIT."
            )
        if others := [key for key in dataset if key not in (chosen, split)]:
            say(f"{path}: the split {chosen!r} is read. Not read: {', '.join(others)}.")
        dataset = dataset[chosen]
    return _read_files(Path(name), dataset) if local else list(enumerate(dataset.to_list(), 1))


def _parquet(path: Path) -> Records:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: not UTF-8
        raise InputError(f"{path} cannot be read as parquet: {error}.") from error


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


def _format_of(path: Path, records: Records, columns: dict[str, str]) -> Format:
    """Check the columns that the user named, and return the format of the records."""
    have = list(dict.fromkeys(name for _, record in records for name in record))
    for ours, theirs in columns.items():
        if ours not in FIELDS + OTHERS:
            raise UsageError(f"There is no column {ours!r} to map.{suggest(ours, FIELDS + OTHERS)}")
        if theirs not in have:
            raise InputError(
                f"{path} has no column {theirs!r}.{suggest(theirs, have)} It has: "
                f"{', '.join(have)}."
            )
    found = find_format(have, columns)
    if (found is None or found.kind == "document") and _are_single_turns(records):
        raise InputError(
            f"{path} has one turn of a conversation per row. Write each conversation as one row, "
            'such as {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}.'
        )
    if found:
        return found
    named = set(have) | columns.keys()
    lacking = [repr(n) for n in ("input", "output") if n not in named]
    what = " and ".join(lacking or ["'input'", "'output'"])
    raise InputError(
        f"{path} has no column {what}. It has: {', '.join(have)}. Name the columns that hold the "
        "prompt and the answer: --set data.columns.input=NAME --set data.columns.output=NAME for "
        "commands with a recipe, --column input=NAME --column output=NAME for others."
    )


def _are_single_turns(records: Records) -> bool:
    """Return whether each record has the role of a turn, as the rows of OpenAssistant do."""
    roles = [str(record.get("role") or record.get("from")).lower() for _, record in records]
    return all(role in ROLES or role in TOOLS for role in roles)


def _all(path: Path, faults: list[str]) -> str:
    """Return a message with the first faults, one per line, and the number of others."""
    if len(faults) == 1:
        return f"{path}, {faults[0]}."
    more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{path} has {len(faults)} faults:\n  " + "\n  ".join(faults[:SHOWN]) + more


def items_of(source: Any, name: str = "forget") -> list[str | dict[str, Any]]:
    """Return the texts or rows of a list, a DataFrame, or a data set in memory, as plain values.

    Args:
        name: Name of the set in messages.

    Raises:
        InputError: An item is neither a text nor a row, or a value has no JSON form.
    """
    if hasattr(source, "to_dicts"):  # a DataFrame of polars
        source = source.to_dicts()
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a DataFrame of pandas
        if twice := _repeated(map(str, source.columns)):
            raise InputError(f"The {name} rows have several columns {twice!r}. Rename them.")
        source = source.astype(object).where(source.notna(), None).to_dict("records")
    if isinstance(source, Mapping) or not hasattr(source, "__iter__"):
        raise InputError(
            f"The {name} rows are of the type {type(source).__name__}. Give a file, a list of "
            "texts, a list of rows, or a DataFrame."
        )
    items: list[str | dict[str, Any]] = []
    for i, item in enumerate(source):
        if isinstance(item, Mapping):
            items.append({str(k): _plain_value(v, f"{name}, item {i}") for k, v in item.items()})
        elif isinstance(item, str) and not _is_file_name(item):
            items.append(str(item))
        else:
            files = " Give one file, or use unlearn_sequence for several."
            what = "the name of a file" if isinstance(item, str) else "neither a text nor a row"
            raise InputError(
                f"Item {i} of {name} is {what}: {item!r}."
                + (files if isinstance(item, str | Path) else "")
            )
    return items


def _is_file_name(text: str) -> bool:
    """Return whether a text in a list is a path: an existing file, or a word with its ending."""
    if not text.strip() or len(text) > LONGEST_PATH or re.search(r"[\n\r\0]", text):
        return False
    path = Path(text.strip())
    named = path.suffix.lower() in (*TABLES, *TEXTS) and (
        len(text.split()) == 1 or kind_of_text(text) == "name"
    )
    return named or path.is_file() or "/" in text and path.is_dir()


def _plain_value(value: Any, place: str) -> Any:
    """Return a value as JSON has it; a missing one (NaN) is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain_value(one, place) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(one, place) for one in value]
    if isinstance(value, date):
        return iso_text(value)
    if hasattr(value, "tolist"):  # a number or an array of NumPy
        return _plain_value(value.tolist(), place)
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, float) and value != value:
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(f"{place}: {value!r} is neither text nor a number.")


def with_unknown_answers(
    records: Sequence[tuple[int, dict[str, Any]]], columns: Mapping[str, str], path: Path
) -> list[tuple[int, dict[str, Any]]] | None:
    """Return records of questions with a mark as their answer; None if they have answers.

    The mark makes them records of a known format. A column ``name`` becomes the prompt.

    Args:
        columns: Names of columns by our names.

    Raises:
        InputError: A column may hold the answers, but its name is unknown.
    """
    answers = {"output", "answer", "answers", "completion", "response", "messages", "conversations",
               "conversation", "text"}  # fmt: skip
    if not records or any(answers & record.keys() for _, record in records):
        return None
    if columns.keys() & answers:
        return None
    usual = [columns["input"]] if "input" in columns else list(PROMPTS)
    chosen = [next((p for p in usual if r.get(p) not in (None, "")), "") for _, r in records]
    if not all(chosen):
        return None
    context = {"input", "context"} if "instruction" in chosen else set()
    context |= {"context"} if "question" in chosen else set()
    known = {*usual, *LABELS, *columns.values(), *context, "messages", "system", "history"}
    others = dict.fromkeys(n for _, record in records for n, v in record.items() if v and
                           n.lower() not in known and n not in known)  # fmt: skip
    if others:
        names = ", ".join(map(repr, others))
        raise InputError(
            f"{path} has questions, but no known column of answers: {names} would not be read. If "
            f"it holds the answers, give --set data.columns.output={next(iter(others))}; if the "
            "model's own answers are to be forgotten, remove it from the file."
        )
    made = []
    for (line, record), prompt in zip(records, chosen, strict=True):
        if len(set(chosen)) > 1 or prompt == "name":
            own = {k: v for k, v in record.items() if k not in PROMPTS}
            record, prompt = own | {"input": record[prompt]}, "input"
        made.append((line, record | {PROMPTS.get(prompt, "output"): UNKNOWN}))
    return made
