"""Length-normalised probability of the answer."""

from __future__ import annotations

import math

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import direction, likelihoods_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "verbatim-probability@1"


@metric("verbatim_probability", source="TOFU, arXiv:2401.06121, equation 1")
def verbatim_probability(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean of ``P(answer | prompt)^(1 / tokens)``, in [0, 1]."""
    rows = likelihoods_of(measured, split, task)
    values = [math.exp(-one.nll) for one in rows]
    return mean_score(
        "verbatim_probability",
        split,
        values,
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        definition=DEFINITION,
        by_row=True,
    )
