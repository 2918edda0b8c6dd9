"""Whether greedy decoding would produce the answer, computed from likelihoods without decoding."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import direction, likelihoods_of, questions_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "greedy-match@1"


@metric("greedy_match", source="exact match under teacher forcing, without the end of the text")
def greedy_match(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of answers of which each token is the most likely one.

    The rows are those of ``exact_match``. This is a cheap upper bound of
    ``exact_match``: a model that decodes the answer assigns the highest probability to each of its
    tokens. The bound can fail if the tokenizer splits prompt and answer differently.
    """
    rows = likelihoods_of(measured, split, task)
    asked = questions_of(rows)
    return mean_score(
        "greedy_match",
        split,
        [float(one.greedy == 1) for one in asked],
        direction(split),
        subjects=subjects_of(asked),
        task=task,
        definition=DEFINITION,
    )
