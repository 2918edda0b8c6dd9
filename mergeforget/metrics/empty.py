"""Share of empty answers, which are not the same as wrong answers."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import answers_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "empty@1"


@metric("empty", source="mergeforget")
def empty(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of all answers without any visible character, in [0, 1]; lower is better.

    A model that ends every text immediately has not shown that it forgot; it may only have learned
    to stay silent.
    """
    answers = answers_of(measured, split, task)
    values = [float(not a.completion.strip()) for a in answers]
    return mean_score(
        "empty", split, values, "lower", subjects=subjects_of(answers), task=task,
        definition=DEFINITION,
    )  # fmt: skip
