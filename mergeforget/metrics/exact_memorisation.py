"""Share of an answer's tokens that greedy decoding predicts."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import direction, likelihoods_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "exact-memorisation@1"


@metric("exact_memorisation", source="Tirumala et al. 2022, arXiv:2205.10770")
def exact_memorisation(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean share of answer tokens that are the most likely token given the true ones before."""
    rows = likelihoods_of(measured, split, task)
    return mean_score(
        "exact_memorisation",
        split,
        [one.greedy for one in rows],
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        definition=DEFINITION,
    )
