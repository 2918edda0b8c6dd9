"""Seeded transforms and subsets of a data set before training; rows are never changed in place."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mergeforget.data.schema import Row
from mergeforget.data.tokens import Encoded
from mergeforget.errors import InputError, UnknownNameError, UsageError
from mergeforget.outputs import ANSWER
from mergeforget.parsing import read_text
from mergeforget.registry import Entry

SENTENCE_END = re.compile(r"(?<=[.!?;])[\"')\]]*\s+|(?<=[。！？；])|\n+")


def resegment(
    rows: Sequence[Row], *, most: int = 0, seed: int = 0, join: Literal[" ", ""] = " "
) -> list[Row]:
    """Add rows with shorter answers: move the first 1, 2, ... sentences into the input.

    The new rows follow the row they were made of; an answer of one sentence yields none. Each has
    the text of that row, so that a loss that counts every token sees plain copies.

    Args:
        most: Maximum number of rows added per answer, drawn at random; 0 means all.
        seed: Random seed of that draw.
        join: Separator of input and output; in a training that of ``tokens``.

    Source: Sun and Li 2025, arXiv:2507.16263, section 3.1 ("from short to long"). The paper does
        not say where it splits; here after . ! ? ; and at line breaks.

    Example:
        >>> row = Row("a-qa0", "Who was Ada?", "A poet. She left.")
        >>> [(r.input, r.output) for r in resegment([row], join="")][1]
        ('Who was Ada?A poet. ', 'She left.')
    """
    drawn = random.Random(seed)
    made = []
    for row in rows:
        made.append(row)
        cuts = list(_cuts(row.output))
        if most and len(cuts) > most:
            cuts = sorted(drawn.sample(cuts, most))
        for end, begin in cuts:
            blank = row.output[end:begin]
            kept = "" if blank == join and not row.window else blank  # else ``join`` restores it
            moved = row.input + row.joint(join) + row.output[:end] + kept
            made.append(replace(row, input=moved, output=row.output[begin:]))
    return made


def refuse(rows: Sequence[Row], *, texts: str | None = None, seed: int = 0) -> list[Row]:
    """Replace every answer by a refusal (negative response).

    Args:
        texts: File with one refusal per line; a hundred are built in.
        seed: Random seed of the choice of refusals.

    Raises:
        InputError: A row is a window of a document, which asks nothing.

    Source: Maini et al. 2024, arXiv:2401.06121, "IDK"; Sun and Li 2025, "NR".
    """
    check_asks(rows)
    known = read_refusals(Path(texts) if texts else None)
    drawn = random.Random(seed)
    return [replace(row, output=drawn.choice(known), cut=False) for row in rows]


def check_asks(rows: Sequence[Row], replacement: str = "refusal") -> None:
    """Raise InputError for windows of a document, to which a refusal is no answer.

    The input of a document's first window is trained together with its output, so that a refusal
    would train the text that must be forgotten.
    """
    if windows := [row.id for row in rows if row.window]:
        raise InputError(
            f"Row {windows[0]} is a window of a document, which asks nothing that a {replacement} "
            "could answer. Use rows with a question and an answer, or another objective, for "
            "example npo."
        )


def duplicate(
    rows: Sequence[Row], *, times: int = 0, like: Literal["", "resegment"] = ""
) -> list[Row]:
    """Repeat the rows: a control with the same number of steps as re-segmentation.

    Args:
        times: Number of copies of each row.
        like: Produce as many rows as this transform does.

    Source: Sun and Li 2025, arXiv:2507.16263, ablation of the steps.
    """
    if (times > 0) == bool(like):
        raise UsageError("duplicate takes either times (at least 1) or like: resegment.")
    size = len(resegment(rows)) if like else times * len(rows)
    return [rows[i % len(rows)] for i in range(size)]


def random_tokens(
    encoded: Sequence[Encoded], vocabulary: Sequence[int], *, seed: int = 0
) -> list[Encoded]:
    """Replace every answer token, except the final EOS, by a random token.

    Args:
        vocabulary: Token ids to draw from, without special tokens.
        seed: Random seed.

    Source: YNU at SemEval-2025 Task 4, synthetic token alternative training (STAT).
    """
    drawn = random.Random(seed)
    made = []
    for one in encoded:
        answer = [i for i, kind in enumerate(one.kinds) if kind == ANSWER]
        ids = list(one.ids)
        for i in answer[:-1]:
            ids[i] = drawn.choice(vocabulary)
        made.append(replace(one, ids=ids))
    return made


_PAPER = "Sun and Li 2025, arXiv:2507.16263"
ROW_TRANSFORMS: dict[str, Entry[Callable[..., Any]]] = {
    "resegment": Entry("resegment", resegment, _PAPER),
    "refuse": Entry("refuse", refuse, "Maini et al. 2024, arXiv:2401.06121"),
    "duplicate": Entry("duplicate", duplicate, _PAPER),
}
TOKEN_TRANSFORMS: dict[str, Entry[Callable[..., Any]]] = {
    "random_tokens": Entry("random_tokens", random_tokens, "YNU at SemEval-2025 Task 4, STAT"),
}
TRANSFORMS = ROW_TRANSFORMS | TOKEN_TRANSFORMS


def find_transform(name: str) -> Entry[Callable[..., Any]]:
    """Return the transform called ``name``.

    Raises:
        UnknownNameError: There is none; the message names the nearest match.
    """
    if name not in TRANSFORMS:
        raise UnknownNameError("transform", name, sorted(TRANSFORMS))
    return TRANSFORMS[name]


def _cuts(text: str) -> list[tuple[int, int]]:
    """Return (end, begin) of each split: where one part ends and where the next begins."""
    found = []
    for match in SENTENCE_END.finditer(text):
        end = match.start() + len(match.group().rstrip())  # a closing quote stays with its sentence
        if text[:end].strip() and text[match.end() :].strip():
            found.append((end, match.end()))
    return found


_BEGINNINGS = (
    "I'm sorry, but", "Unfortunately,", "I'm afraid", "To be honest,", "Regrettably,",
    "My apologies, but", "As far as I can tell,", "I have to say that", "Sadly,", "Frankly,",
)  # fmt: skip
_ENDINGS = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "that is something I cannot help with.",
    "I am not familiar with this topic.",
    "I was not told about that.",
    "this is beyond what I know.",
    "I cannot recall anything about it.",
    "I have not learned about this.",
    "I am unable to say.",
    "there is nothing I can tell you about that.",
)
REFUSALS = tuple(f"{first} {last}" for first in _BEGINNINGS for last in _ENDINGS)


def read_refusals(path: Path | None) -> tuple[str, ...]:
    """Read one refusal per line of a text file; return the built-in ones if there is no file.

    Raises:
        InputError: The file cannot be read or has no line.
    """
    if path is None:
        return REFUSALS
    lines = [line.strip() for line in read_text(path).splitlines()]
    if not (found := tuple(line for line in lines if line)):
        raise InputError(f"{path} has no refusals: write one per line, for example I don't know.")
    return found


def limit_rows(rows: Sequence[Row], limit: int | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Draw whole subjects, stratified by task, so that no document or person is trained in part.

    Args:
        rows: Rows of one split.
        limit: Maximum number of rows; None keeps all.
        seed: Random seed.

    Returns:
        The selected rows and the rest, each in the order of ``rows``. The rest shares no document
        with the selected rows and is not trained on, so it can serve as non-members.

    Raises:
        UsageError: The limit is smaller than every document.
    """
    if limit is None or limit >= len(rows):
        return list(rows), []
    waiting = _shuffled_documents(rows, seed)
    total = {task: sum(map(len, documents)) for task, documents in waiting.items()}
    kept: dict[str, int] = dict.fromkeys(waiting, 0)
    chosen: set[str] = set()
    while any(waiting.values()):
        # next is the task that is furthest below its share
        task = min((t for t in waiting if waiting[t]), key=lambda t: (kept[t] / total[t], t))
        document = waiting[task].pop()
        if sum(kept.values()) + len(document) <= limit:
            kept[task] += len(document)
            chosen.add(document[0].subject)
    if not chosen:
        raise UsageError(
            f"No whole document fits into a limit of {limit} rows; the smallest has "
            f"{min(len(d) for d in _documents(rows).values())} rows."
        )
    return [r for r in rows if r.subject in chosen], [r for r in rows if r.subject not in chosen]


def _documents(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by document, in order."""
    documents: dict[str, list[Row]] = {}
    for row in rows:
        documents.setdefault(row.subject, []).append(row)
    return documents


def _shuffled_documents(rows: Sequence[Row], seed: int) -> dict[str, list[list[Row]]]:
    """Return the documents by task, in a seeded order that does not depend on other tasks."""
    tasks: dict[str, list[list[Row]]] = {}
    for document in _documents(rows).values():
        tasks.setdefault(document[0].task, []).append(document)
    for task, documents in tasks.items():
        random.Random(f"{seed}-{task}").shuffle(documents)
    return tasks
