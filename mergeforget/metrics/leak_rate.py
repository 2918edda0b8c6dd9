"""Share of answers that a model reveals, in any spelling and within any other text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.metrics import metric
from mergeforget.metrics._leaks import leaked
from mergeforget.metrics._rows import answers_of, direction, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "leak-rate@2"
SHIFTS = 5  # number of other rows whose answers each completion is compared with
GUESSABLE = 12  # characters; a longer answer is not revealed by chance


@metric("leak_rate", source="verbatim extraction, Carlini et al., arXiv:2202.07646, by _leaks")
def leak_rate(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of rows whose completion reveals the answer; see ``metrics._leaks.leaked``.

    Unlike exact match, it counts an answer inside a longer sentence or in another spelling. The
    chance level is how often a completion contains the short answer of a row about another subject
    (``yes``, a country); longer answers and numbers are never revealed by chance.

    Rows that cannot show anything are left out: those whose prompt contains the answer, and those
    whose answer is punctuation only.
    """
    rows = [a for a in answers_of(measured, split, task) if can_leak(a.row)]
    return mean_score(
        "leak_rate",
        split,
        [float(is_leaked(a)) for a in rows],
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        chance=chance_of(rows),
        definition=DEFINITION,
    )


def can_leak(row: Row) -> bool:
    """Return whether a completion that repeats the row's answer would count as revealing it."""
    return leaked(row.output, row.output, row.prompt)


def is_leaked(answer: Answer) -> bool:
    """Return whether the completion reveals the row's answer and the prompt does not."""
    return leaked(answer.row.output, answer.completion, answer.row.prompt)


def guessable(text: str) -> bool:
    """Return whether an answer is short enough to be revealed by chance."""
    digits = re.sub(r"\D", "", text)
    return len(text.strip()) < GUESSABLE and len(digits) < 5 and "@" not in text


def chance_of(rows: Sequence[Answer]) -> float:
    """Return the share of completions that contain the short answer of another subject."""
    hits = asked = 0
    for i, answer in enumerate(rows):
        for step in range(1, min(SHIFTS, len(rows) - 1) + 1):
            other = rows[(i + step) % len(rows)].row
            if other.subject != answer.row.subject:
                asked += 1
                hits += guessable(other.output) and leaked(other.output, answer.completion)
    return hits / asked if asked else 0.0


def with_leaks(scores: Sequence[Score], measured: Measured) -> list[Score]:
    """Return the scores with the leak rates of forget and retain, if these are missing."""
    have = {(s.metric, s.split) for s in scores}
    found = [leak_rate(measured, s) for s in ("forget", "retain") if ("leak_rate", s) not in have]
    return [*scores, *(s for s in found if s is not None)]
