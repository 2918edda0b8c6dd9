"""Whether greedy decoding would give the answer, read off its likelihood without decoding."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import direction, likelihoods_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "greedy-match@1"


@metric("greedy_match", source="exact match under teacher forcing; how the text ends is not asked")
def greedy_match(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of questions whose answer is the most likely token at each of its places.

    Over all rows where the split has no question. A cheap stand-in for ``exact_match``: a model
    that decodes the answer has every token of it most likely, so this is never below it, but for a
    tokenizer that cuts prompt and answer differently.
    """
    rows = likelihoods_of(measured, split, task)
    questions = [one for one in rows if one.row.kind == "qa"]
    asked = questions or rows
    return mean_score(
        "greedy_match",
        split,
        [float(one.greedy == 1) for one in asked],
        direction(split),
        subjects=subjects_of(asked),
        task=task,
        definition=DEFINITION,
    )
