"""Share of an answer that greedy decoding completes from its beginning."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import direction, likelihoods_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "extraction-strength@1"


@metric("extraction_strength", source="Carlini et al. 2021, arXiv:2012.07805; arXiv:2407.06460")
def extraction_strength(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean of ``1 - k/n``: after k of an answer's n tokens, greedy decoding yields the others.

    0 if nothing is extracted (k = n), and 1 if the prompt alone yields the whole answer.
    """
    rows = likelihoods_of(measured, split, task)
    return mean_score(
        "extraction_strength",
        split,
        [one.extracted for one in rows],
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        definition=DEFINITION,
    )
