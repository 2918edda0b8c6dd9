"""Reads the fields of a record: text, numbers, lists, conversations.

A file contains one text in several ways: pandas writes a missing value as NaN and a whole number
as a float, and csv files contain lists as JSON. Every error is a ValueError that names the field.
"""

from __future__ import annotations

import ast
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from mergeforget.data.schema import Message, Window, stored_messages
from mergeforget.errors import InputError
from mergeforget.parsing import parse_json

Record = dict[str, Any]
ROLES = {  # of a turn in a file -> ours
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
TOOLS = ("tool", "function", "function_call", "function_response", "observation", "ipython")
CALLS = ("tool_calls", "function_call")  # keys of an assistant's turn
OPTIONS = ("choices", "options")  # columns of the options of a multiple-choice question
LETTERS = "ABCDEFGHIJ"  # labels of options without labels
TURN_KEYS = {"role", "from", "content", "value", "weight", "train", "name", "id", *CALLS}


def conversation(given: Any, name: str) -> list[Message]:
    """Read the turns of ``[{role, content}]`` or ShareGPT's ``[{from, value}]``."""
    given = parsed(given, name)
    if not isinstance(given, list) or not given:
        raise ValueError(f"{name!r} is not a list of turns but {_shown(given)}")
    turns = []
    for turn in given:
        if not isinstance(turn, dict):
            raise ValueError(f"{name!r} contains a turn that is not an object: {_shown(turn)}")
        role = str(turn.get("role") or turn.get("from") or "").lower()
        if role in TOOLS or any(turn.get(key) for key in CALLS):
            raise ValueError(
                f"{name!r} contains a call of a tool or its result, which is not rendered. Write "
                "both as text into the turns of the assistant and the user, or remove them"
            )
        if role not in ROLES:
            raise ValueError(
                f"{name!r} contains a turn with the role {role!r}; the roles are "
                f"{', '.join(sorted(ROLES))}"
            )
        content = turn["content"] if "content" in turn else turn.get("value")
        turns.append(Message(ROLES[role], _content(content, name)))
    return turns


def unread_turn_keys(given: Any) -> set[str]:
    """Return the keys of turns that contain text and are not read, such as the thoughts."""
    turns = given if isinstance(given, list) else []
    return {
        str(key) for turn in turns if isinstance(turn, dict) for key, value in turn.items()
        if key not in TURN_KEYS and isinstance(value, str) and len(value.split()) > 1
    }  # fmt: skip


def turn_weights(given: Any, name: str) -> list[float]:
    """Return the weight of each turn: OpenAI's ``weight`` or axolotl's ``train``; 1 without.

    Raises:
        ValueError: A weight is not a number of at least 0, or ``train`` is not true or false.
    """
    weights = []
    for turn in parsed(given, name):
        weight, train = turn.get("weight"), turn.get("train")
        if not (isinstance(train, bool) or missing(train)):
            raise ValueError(f"{name!r} contains a turn whose train is {_shown(train)}, not a bool")
        chosen = 0.0 if train is False else 1.0
        if not missing(weight):
            chosen *= weight_of("" if isinstance(weight, bool) else str(weight))
        weights.append(chosen)
    return weights


def _is_exchange(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def earlier_turns(record: Record, names: frozenset[str], first: str) -> list[Message]:
    """Return the turns in the columns ``system`` and ``history``, as in LLaMA-Factory.

    Args:
        names: The columns to read.
        first: Role of the turn that follows; a system message there replaces the column ``system``.
    """
    turns = []
    if "system" in names and first != "system" and not missing(record.get("system")):
        text = value_of(record, "system")
        turns += [Message("system", text)] if text.strip() else []
    if "history" in names and not missing(record.get("history")):
        pairs = parsed(record["history"], "history")
        pairs = [] if pairs == "" else pairs
        if not isinstance(pairs, list) or not all(_is_exchange(pair) for pair in pairs):
            raise ValueError(
                f"'history' is not a list of [question, answer] but {_shown(record['history'])}"
            )
        for question, answer in pairs:
            turns += [Message("user", question), Message("assistant", answer)]
    return turns


def are_turns(value: Any) -> bool:
    """Return whether a field is a list of turns rather than text, as in TRL's data sets."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _content(content: Any, name: str) -> str:
    if isinstance(content, list):  # parts of a multimodal message
        parts = [p.get("text") if isinstance(p, dict) else p for p in content]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{name!r} contains a turn with content other than text")
        return "".join(map(str, parts))
    if missing(content):
        return ""
    if not isinstance(content, str):
        raise ValueError(f"{name!r} contains a turn whose content is {_shown(content)}")
    return content


def is_visible(text: str) -> bool:
    """Return whether a text has a character other than whitespace and invisible ones.

    >>> is_visible("\\u200b "), is_visible("...")
    (False, True)
    """
    return any(unicodedata.category(c) not in ("Cf", "Cc") and not c.isspace() for c in text)


def missing(value: Any) -> bool:
    """Return whether a value is absent: None, or NaN as written by pandas."""
    return value is None or isinstance(value, float) and math.isnan(value)


def value_of(record: Record, name: str) -> str:
    """Return a field as text: whole floats without ``.0``, dates in the ISO format."""
    value = record.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError(f"{name!r} is missing (NaN)")
        if math.isinf(value):
            raise ValueError(f"{name!r} is not a finite number")
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, date):  # of parquet; also a time
        return iso_text(value)
    if isinstance(value, Decimal | UUID | time):
        return str(value)
    raise ValueError(f"{name!r} is not text but {_shown(value)}")


def iso_text(value: date) -> str:
    """Return a date, or a time without time zone at midnight as its date, in ISO 8601.

    A column of dates in a data frame contains such times.

    >>> iso_text(datetime(1987, 3, 2)), iso_text(datetime(1987, 3, 2, 10, 30))
    ('1987-03-02', '1987-03-02T10:30:00')
    """
    if isinstance(value, datetime) and value.timetz() == time():
        return value.date().isoformat()
    return value.isoformat()


def window_of(text: str) -> Window:
    """Return the kind of a window; empty for any other text."""
    known: dict[str, Window] = {"whole": "whole", "start": "start", "middle": "middle",
                                "end": "end"}  # fmt: skip
    return known.get(text, "")


def cut_of(value: Any) -> bool:
    """Return whether an answer is marked as cut; a csv file contains the mark as text."""
    return value is True or isinstance(value, str) and value.lower() == "true"


def further_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional fields of a row that ``Row.to_dict`` wrote, as arguments of ``Row``."""
    perturbed, further = stored.get("perturbed"), stored.get("further_answers")
    return {
        "subject": str(stored.get("subject") or ""),
        "messages": stored_messages(stored.get("messages")),
        "paraphrased": str(stored.get("paraphrased") or ""),
        "perturbed": tuple(map(str, perturbed)) if isinstance(perturbed, list) else (),
        "further_answers": tuple(map(str, further)) if isinstance(further, list) else (),
        "window": window_of(str(stored.get("window") or "")),
        "cut": cut_of(stored.get("cut")),
    }


def weight_of(text: str) -> float:
    """Return the weight of a row, a finite number of at least 0."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"the weight is {text[:40]!r}, not a number of at least 0")
    return weight


def texts_of(record: Record, name: str) -> tuple[str, ...]:
    """Return a list of texts; a csv file contains it as JSON text."""
    value = parsed(record.get(name), name)
    texts = value if isinstance(value, list) else [] if missing(value) or not value else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name!r} is not a list of texts but {_shown(value)}")
    return tuple(texts)


def parsed(value: Any, name: str, opening: str = "[") -> Any:
    """Return a list that a csv file contains as text, in JSON or as Python writes it.

    ``DataFrame.to_csv`` of pandas writes a list as Python does. Any other value is returned
    unchanged.

    Args:
        opening: First characters of the texts to parse: ``{`` for an object.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(tuple(opening)):
        return value
    try:
        return parse_json(value, name)
    except InputError as error:
        found = _python_value(value.strip())
        if found is None:
            raise ValueError(
                f"{name!r} is not JSON ({str(error).rstrip('.')}). A table contains such a value "
                "as JSON text; JSON Lines and parquet files need no conversion"
            ) from error
        return found


def _python_value(text: str) -> list[Any] | dict[Any, Any] | None:
    """Return a list or dictionary that Python has written; None for any other text.

    NumPy writes ``['a' 'b']``, in which Python reads one text: the value must give the same text.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list | dict) and repr(value) == text else None


def options_of(record: Record) -> tuple[list[str], list[str]]:
    """Return the labels and the texts of the options of a multiple-choice question.

    They are in a column ``choices`` or ``options``, as a list (WMDP, MMLU on the Hub), with their
    labels (ARC) or by letter, or in columns ``A``, ``B``, ... Both are empty for other records.
    """
    name = next((n for n in OPTIONS if not missing(record.get(n))), "")
    try:
        given = parsed(record.get(name), name, "[{")
    except ValueError:
        return [], []
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        given = dict(zip(map(str, given.get("label") or ()), given["text"], strict=False))
    if not name:
        given = {letter: record[letter] for letter in LETTERS if record.get(letter)}
    if isinstance(given, list):
        given = dict(zip(LETTERS, given, strict=False)) if len(given) <= len(LETTERS) else {}
    texts = list(given.values()) if isinstance(given, dict) else []
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        return [], []
    return list(map(str, given)), texts


def option_named(record: Record, name: str, *, labelled: bool = False) -> str:
    """Return the text of the option that an answer names by its label or its number, from 0.

    Empty if the record has no options, or the answer is a text of its own. A whole number in a file
    with types is a number of an option.

    Args:
        labelled: Also read a text as a label if it is the text of an option as well, as ``1`` in
            ``["3", "2", "1"]``; see ``are_labels``.

    Raises:
        ValueError: The answer is a number, but no option has it.

    Example:
        >>> option_named({"answer": 1, "choices": ["Rome", "Lund"]}, "answer")
        'Lund'
    """
    labels, texts = options_of(record)
    answer = record.get(name)
    if not texts or isinstance(answer, bool) or missing(answer):
        return ""
    own = isinstance(answer, str) and answer.strip() in texts
    if own and not labelled:
        return ""
    place = _place_of(answer, labels)
    if place is None:
        return ""
    if place >= len(texts):
        raise ValueError(
            f"{name!r} is {place}, but the options are numbered from 0 to {len(texts) - 1}"
        )
    return texts[place]


def _place_of(answer: Any, labels: Sequence[str]) -> int | None:
    """Return the place of the option that a label or a number names; None for any other answer."""
    text = str(answer).strip()
    if isinstance(answer, float):
        text = text.removesuffix(".0")
    upper = [label.upper() for label in labels]
    if text.upper() in upper:
        return upper.index(text.upper())
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 4 else None


def are_labels(records: Sequence[Record], name: str) -> bool:
    """Return whether all answers of a file name an option, and not all are texts of options."""
    texts = 0
    for record in records:
        labels, options = options_of(record)
        place = _place_of(record.get(name), labels) if options else None
        if place is None or place >= len(options):
            return False
        texts += str(record.get(name)).strip() in options
    return texts < len(records)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:40]
