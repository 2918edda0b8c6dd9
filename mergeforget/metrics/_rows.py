"""Selection of the rows of a metric, and the direction in which it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from mergeforget.data.schema import Answer, AnswerLikelihood, Measured, Row, kinds_of, preferred
from mergeforget.errors import NumericError
from mergeforget.metrics._characters import visible
from mergeforget.metrics._spellings import WORD
from mergeforget.score import Better

Asked = TypeVar("Asked", Answer, AnswerLikelihood)


def answers_of(measured: Measured, split: str, task: str = "", kind: str = "") -> list[Answer]:
    """Return the answers of a split, optionally of one task and one kind of row."""
    answers = [a for a in measured.answers if a.row.split == split]
    if kind:
        kinds = kinds_of([a.row for a in answers])
        answers = [a for a, own in zip(answers, kinds, strict=True) if own == kind]
    return [a for a in answers if not task or a.row.task == task]


def questions_of(rows: list[Asked]) -> list[Asked]:
    """Leave out the completion rows of documents that have questions; all rows without questions.

    Windows of documents are no questions either.
    """
    used = preferred([one.row for one in rows], "qa")
    if any(one.row.kind == "qa" for one in rows):
        used = [keep and not one.row.window for keep, one in zip(used, rows, strict=True)]
    return [one for one, keep in zip(rows, used, strict=True) if keep]


def likelihoods_of(measured: Measured, split: str, task: str = "") -> list[AnswerLikelihood]:
    """Return the likelihoods of a split's answers, except those of answers without a token."""
    return [
        one
        for one in measured.likelihoods
        if one.row.split == split and one.tokens and (not task or one.row.task == task)
    ]


def direction(split: str) -> Better:
    """Return which direction is better: lower on the forget set, higher on any other split."""
    return "lower" if split == "forget" else "higher"


def membership_definition(name: str, measured: Measured) -> str:
    """Return the definition of a membership score, with the unit of membership.

    Rows, answers and documents are not equally hard to distinguish, so scores of different units
    cannot be compared. The default unit, documents, is not named.
    """
    unit = "" if measured.membership == "documents" else f"-{measured.membership}"
    return f"{name}{unit}@1"


class Signals(NamedTuple):
    """A membership signal of documents; larger means more likely a member.

    Attributes:
        members, nonmembers: The signal of each document.
        subjects: The subjects of the members, and of the non-members.
    """

    members: list[float]
    nonmembers: list[float]
    subjects: tuple[list[str], list[str]]


def signals_of(measured: Measured, signal: str, task: str = "") -> Signals:
    """Return a membership signal of the documents; ``loss`` exists for every document."""
    signals = Signals([], [], ([], []))
    for document in measured.losses:
        value = -document.nll if signal == "loss" else document.signals.get(signal)
        if value is not None and (not task or document.task == task):
            if math.isnan(value):  # it has no rank, so the AUC would be arbitrary
                raise NumericError(
                    f"The {signal} of document {document.id!r} is not a number, so membership "
                    "cannot be measured. Check the weights of the model for NaN and Inf, and load "
                    "it in float32."
                )
            (signals.members if document.member else signals.nonmembers).append(value)
            signals.subjects[0 if document.member else 1].append(document.subject)
    return signals


def subjects_of(rows: Iterable[Answer | AnswerLikelihood]) -> list[str]:
    """Return the subject of each row."""
    return [one.row.subject for one in rows]


def similar_questions(rows: Sequence[Row]) -> Callable[[int, int], int]:
    """Return a function of two places in ``rows``: how much the questions of the rows resemble.

    Questions that differ in the name only resemble most. A word that both have counts once for each
    subject whose prompts have it, because few subjects share a name; a lower-case word counts for
    all subjects where names begin with a capital. Without letter case, or where all nouns have
    capitals, the words of the question therefore count more than those of the name. In a script
    without spaces, each character is a word.

    >>> rows = [Row(n, q.format(n), "") for n in ("\u674e\u660e", "\u738b\u4f1f", "\u5f20\u534e")
    ...         for q in ("{}\u7684\u804c\u4e1a", "{}\u7684\u5e74\u9f84")]
    >>> resemble = similar_questions(rows)  # of the job and the age of three people
    >>> resemble(0, 2) > resemble(0, 3)
    True
    """
    words = [WORD.findall(visible(row.prompt)) for row in rows]
    lower = {w for one in words if any(w[0].isupper() for w in one) for w in one if w[0].islower()}
    subjects: dict[str, set[str]] = {}
    for row, one in zip(rows, words, strict=True):
        for word in one:
            subjects.setdefault(word.casefold(), set()).add(row.subject)
    every = len({row.subject for row in rows})
    weights = {word: len(who) for word, who in subjects.items()}
    weights |= {word.casefold(): every for word in lower}
    stems = [frozenset(map(str.casefold, one)) for one in words]
    return lambda i, j: sum(weights[word] for word in stems[i] & stems[j])
