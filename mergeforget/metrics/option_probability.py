"""Probability of the answer among wrong options."""

from __future__ import annotations

import numpy as np

from mergeforget.data.schema import AnswerLikelihood, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import direction, likelihoods_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "option-probability@1"


@metric("option_probability", source="TOFU, arXiv:2401.06121, section 2.2, real authors and facts")
def option_probability(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean of ``P(answer) / (P(answer) + sum of P(perturbed))``, in [0, 1].

    P is ``exp(-NLL)``, the probability raised to the power 1 / tokens, so that longer answers are
    not penalised for their length. The chance level is ``1 / options``, averaged over the rows.
    """
    rows = [one for one in likelihoods_of(measured, split, task) if one.perturbed]
    chance = [1 / (1 + len(one.perturbed)) for one in rows]
    return mean_score(
        "option_probability",
        split,
        [share_of(one) for one in rows],
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        chance=sum(chance) / len(chance) if chance else None,
        definition=DEFINITION,
        by_row=True,
    )


def share_of(one: AnswerLikelihood) -> float:
    """Return the share of the answer in the total probability of all options."""
    # computed with logarithms because exp(710) overflows
    return float(np.exp(-np.logaddexp.reduce([0.0, *(one.nll - nll for nll in one.perturbed)])))
