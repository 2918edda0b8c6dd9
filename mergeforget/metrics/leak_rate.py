"""How many answers come out, in whatever spelling and with whatever words around them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mergeforget.data.schema import Answer, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._leaks import leaked
from mergeforget.metrics._rows import answers_of, direction, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "leak-rate@1"
SHIFTS = 5  # other rows with which each completion is compared
GUESSABLE = 12  # characters from which an answer does not come out by chance


@metric("leak_rate", source="verbatim extraction, Carlini et al., arXiv:2202.07646, by _leaks")
def leak_rate(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of rows whose completion reveals the answer; see ``metrics._leaks.leaked``.

    Unlike exact match it counts an answer inside a longer sentence or in another spelling. Chance
    is how often a completion contains the short answer of a row about another subject (``yes``, a
    country); longer answers and numbers do not come out by chance and count as 0 there.
    """
    rows = [a for a in answers_of(measured, split, task) if a.row.output.strip()]
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


def is_leaked(answer: Answer) -> bool:
    """Return whether the completion reveals the row's answer and the prompt does not."""
    return leaked(answer.row.output, answer.completion, answer.row.prompt)


def guessable(text: str) -> bool:
    """Return whether an answer is so short that it may come out by chance."""
    digits = re.sub(r"\D", "", text)
    return len(text.strip()) < GUESSABLE and len(digits) < 5 and "@" not in text


def chance_of(rows: Sequence[Answer]) -> float:
    """Share of completions that contain another subject's short answer."""
    hits = asked = 0
    for i, answer in enumerate(rows):
        for step in range(1, min(SHIFTS, len(rows) - 1) + 1):
            other = rows[(i + step) % len(rows)].row
            if other.subject != answer.row.subject:
                asked += 1
                hits += guessable(other.output) and leaked(other.output, answer.completion)
    return hits / asked if asked else 0.0


def with_leaks(scores: Sequence[Score], measured: Measured) -> list[Score]:
    """Return the scores, and the leak rates of forget and retain where they are not among them."""
    have = {(s.metric, s.split) for s in scores}
    found = [leak_rate(measured, s) for s in ("forget", "retain") if ("leak_rate", s) not in have]
    return [*scores, *(s for s in found if s is not None)]
