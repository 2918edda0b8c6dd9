"""Reads rows: recognises the format of records, checks them, and names what is not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mergeforget.console import say
from mergeforget.data.fields import LETTERS, OPTIONS, ROLES, TOOLS, are_labels
from mergeforget.data.formats import (
    ANSWERS,
    FIELDS,
    FURTHER,
    LABELS,
    OTHERS,
    PROMPTS,
    SEVERAL,
    Format,
    Turns,
    find_format,
    unread_text,
    with_authors,
)
from mergeforget.data.schema import Row, with_own_subjects
from mergeforget.data.sources import read_records
from mergeforget.data.sources.common import TEXTS, Records, faults_in
from mergeforget.data.sources.folders import SETS, file_of_set
from mergeforget.data.sources.text_entries import answered_questions, entries_of, kinds_of_list
from mergeforget.errors import InputError, UsageError, suggest

SplitCheck = Literal["", "part", "any"]  # refuse a part of the rows; any: warn of all
END = re.compile(  # tokens that end a text or a turn, written out
    r"(\s*(</s>|<eos>|<end_of_turn>|<\|(im_end|endoftext|end_of_text|end_of_turn|eot_id|eom_id|eot|"
    r"eos|end|return)\|>|<\uff5cend\u2581of\u2581sentence\uff5c>))+\s*$"
)
TEXT_KEYS = {"id", "subject", "text"}  # of a record that is a text, and of a text file
UNKNOWN = "unknown"  # stands for the answer of a record that has none


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
    records, columns = _in_lower_case(records, dict(columns or {}))
    form = _format_of(path, records, columns)
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
        raise InputError(faults_in(path, faults))
    rows = _without_ends(path, rows if "subject" in form.names else with_own_subjects(rows))
    _warn_of_unread(path, [record for _, record in records], form, turns)
    grouped = form.suffix == "qa0" and not form.names.keys() & {"id", "subject"}
    return with_authors(rows) if grouped else rows


def _warn_of_unread(
    path: Path, records: Sequence[dict[str, Any]], form: Format, turns: Turns
) -> None:
    """Name the columns, the assistant turns and the further answers that are not read."""
    chosen = sum(bool(form.option(record)) for record in records)
    if chosen:
        say(f"{path}: {chosen} answers name an option of their question; its text is the answer.")
    options = {*OPTIONS, *LETTERS} if 2 * chosen > len(records) else set()
    for name in unread_text(records, form.read | options):
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
            f"{path}: {several} rows have several right answers. The first one is trained; a "
            "completion that contains any of them reveals the row."
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


def _format_of(path: Path, records: Records, columns: dict[str, str]) -> Format:
    """Check the columns that the user named, and return the format of the records."""
    have = list(dict.fromkeys(name for _, record in records for name in record))
    shown = ", ".join(filter(str.strip, have))
    for ours, theirs in columns.items():
        if ours not in (known := (*FIELDS, *OTHERS, FURTHER)):
            raise UsageError(f"There is no column {ours!r} to map.{suggest(ours, known)}")
        if theirs not in have:
            raise InputError(
                f"{path} has no column {theirs!r}.{suggest(theirs, have)} It has: {shown}."
            )
    found = find_format(have, columns)
    if (found is None or found.kind == "document") and _are_single_turns(records):
        raise InputError(
            f"{path} has one turn of a conversation per row. Write each conversation as one row, "
            'such as {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}.'
        )
    if found:
        if found.kind == "document" and found.names["text"] == "text":
            _check_text(path, records, columns)
        answer = found.names.get("output", "")
        return replace(found, labelled=are_labels([r for _, r in records], answer))
    if advice := _pair_advice(records[0][1]):
        raise InputError(f"{path} has no column of answers; it has: {shown}.{advice}")
    named = set(have) | columns.keys()
    lacking = [repr(n) for n in ("input", "output") if n not in named]
    what = " and ".join(lacking or ["'input'", "'output'"])
    raise InputError(
        f"{path} has no column {what}. It has: {shown}. Name the columns that hold the "
        "prompt and the answer: --set data.columns.input=NAME --set data.columns.output=NAME for "
        "commands with a recipe, --column input=NAME --column output=NAME for others."
    )


def _in_lower_case(records: Records, columns: dict[str, str]) -> tuple[Records, dict[str, str]]:
    """Write column names such as ``Question `` in lower case if only that makes them known."""
    have = list(dict.fromkeys(name for _, record in records for name in record))
    usual = {name: name.strip().lower() for name in have}
    lower = {ours: usual.get(theirs, theirs) for ours, theirs in columns.items()}
    if find_format(have, columns) or len({*usual.values()}) < len(have):
        return records, columns
    if find_format(list(usual.values()), lower) is None:
        return records, columns
    renamed = [(i, {usual[name]: value for name, value in r.items()}) for i, r in records]
    return renamed, lower


def _check_text(path: Path, records: Records, columns: Mapping[str, str]) -> None:
    """Raise InputError for texts next to a column of answers, as in KnowUnDo's rows.

    The texts may be prompts, and would be read as documents without their answers.
    """
    if "text" in columns:
        return
    for name in (*ANSWERS, SEVERAL, "labels"):
        values = [record.get(name) for _, record in records]
        texts = [v for v in values if isinstance(v, str) and v.strip() and not v.isdecimal()]
        if 2 * len(texts) > len(records):
            raise InputError(
                f"{path} has the columns 'text' and {name!r}. If the texts are prompts, map both: "
                f"--set data.columns.input=text --set data.columns.output={name} for commands with "
                f"a recipe, --column input=text --column output={name} for others. If they are "
                f"documents, remove the column {name!r} or map text=text."
            )


def _pair_advice(record: Mapping[str, Any]) -> str:
    """Return how to read preference pairs, of which one answer is chosen; empty for others."""
    if not {"chosen", "rejected"} <= record.keys():
        return ""
    whole = isinstance(record["chosen"], list) and len(record["chosen"]) > 1
    ours = "messages" if whole else "output"
    return (
        " These are preference pairs. Name the answers that the model was trained on: --set "
        f"data.columns.{ours}=chosen for commands with a recipe, --column {ours}=chosen for others."
    )


def _are_single_turns(records: Records) -> bool:
    """Return whether each record has the role of a turn, as the rows of OpenAssistant do."""
    roles = [str(record.get("role") or record.get("from")).lower() for _, record in records]
    return all(role in ROLES or role in TOOLS for role in roles)


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
    if not columns and not any(PROMPTS.keys() & record.keys() for _, record in records):
        records = [(i, {n.strip().lower(): v for n, v in r.items()}) for i, r in records]
    have = {name.strip().lower() for _, record in records for name in record}
    if not records or answers & have:
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
