"""Share of answers that equal the reference."""

from __future__ import annotations

import unicodedata

from mergeforget.data.schema import Answer, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import answers_of, direction, questions_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "exact-match@2"


@metric(
    "exact_match", source="exact match without case, as in SemEval-2025 Task 4's knowledge score"
)
def exact_match(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of exact answers, without the completion rows of documents that have questions."""
    rows = questions_of(answers_of(measured, split, task))
    values = [float(is_exact(a)) for a in rows]
    return mean_score(
        "exact_match",
        split,
        values,
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        chance=0.0,
        definition=DEFINITION,
    )


def is_exact(answer: Answer) -> bool:
    """Return whether the completion is the reference, ignoring case and surrounding whitespace.

    Composed and decomposed, and full-width and half-width forms of a character are equal, and so is
    the reference as the tokenizer decodes it. A completion may continue a reference that was cut.

    Example:
        >>> from mergeforget.data.schema import Row
        >>> is_exact(Answer(Row("1", "Where?", "S\u00e3o Paulo"), " sa\u0303o paulo"))
        True
    """
    text, references = _plain(answer.completion), map(_plain, answer.references)
    return any(text.startswith(one) if answer.row.cut else text == one for one in references)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()
