"""Which rows a metric reads, and which way is better on them."""

from __future__ import annotations

from mergeforget.data.schema import Answer, AnswerLikelihood, Measured
from mergeforget.score import Better


def answers_of(measured: Measured, split: str, task: str = "", kind: str = "") -> list[Answer]:
    """Answers of a split; of one task and one kind of row where these are given."""
    return [
        a
        for a in measured.answers
        if a.row.split == split
        and (not task or a.row.task == task)
        and (not kind or a.row.kind == kind)
    ]


def likelihoods_of(measured: Measured, split: str, task: str = "") -> list[AnswerLikelihood]:
    """Likelihoods of a split's answers, those without a token left out."""
    return [
        one
        for one in measured.likelihoods
        if one.row.split == split and one.tokens and (not task or one.row.task == task)
    ]


def direction(split: str) -> Better:
    """Knowing the forget set is bad, knowing any other is good."""
    return "lower" if split == "forget" else "higher"


def membership_definition(name: str, measured: Measured) -> str:
    """The definition of a membership score; it names rows or answers where these were judged.

    They are easier or harder to tell apart than documents are, so their figures do not compare.
    """
    unit = "" if measured.membership == "documents" else f"-{measured.membership}"
    return f"{name}{unit}@1"


def signals_of(measured: Measured, signal: str, task: str = "") -> tuple[list[float], list[float]]:
    """A membership signal of members and of non-members; ``loss`` is there for every document."""
    found: tuple[list[float], list[float]] = ([], [])
    for document in measured.losses:
        value = -document.nll if signal == "loss" else document.signals.get(signal)
        if value is not None and (not task or document.task == task):
            found[0 if document.member else 1].append(value)
    return found
