"""Selection of the rows of a metric, and the direction in which it is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from mergeforget.data.schema import Answer, AnswerLikelihood, Measured, kinds_of, preferred
from mergeforget.errors import NumericError
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
