"""Probability of wrong answers relative to the paraphrased right answer."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from mergeforget.data.schema import AnswerLikelihood, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import likelihoods_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

Mean = Literal["arithmetic", "geometric"]
DEFINITIONS: dict[Mean, str] = {"arithmetic": "truth-ratio@1", "geometric": "truth-ratio@2"}


@metric("truth_ratio", source="TOFU, arXiv:2401.06121, equation 2; its code: locuslab/tofu")
def truth_ratio(
    measured: Measured, split: str, task: str = "", *, mean: Mean = "arithmetic"
) -> Score | None:
    """Similarity of the probabilities of wrong answers and the paraphrased right one; in [0, 1].

    With R from ``log_ratio``, the score of the forget set is the mean of ``min(R, 1 / R)``, which
    is 1 if the model cannot distinguish right from wrong answers. On other splits it is the mean of
    ``max(0, 1 - R)``, which is 1 if it distinguishes them perfectly. Higher is better on both. The
    score with the geometric mean is called ``truth_ratio_geometric``.
    """
    rows = [one for one in likelihoods_of(measured, split, task) if one.perturbed]
    ratios = [log_ratio(one, mean) for one in rows]
    if split == "forget":
        values = [math.exp(-abs(ratio)) for ratio in ratios]
    else:
        values = [max(0.0, -math.expm1(min(ratio, 0.0))) for ratio in ratios]
    return mean_score(
        named("truth_ratio", mean),
        split,
        values,
        "higher",
        subjects=subjects_of(rows),
        task=task,
        definition=DEFINITIONS[mean],
        by_row=True,
    )


def log_ratios(
    measured: Measured, split: str, task: str = "", mean: Mean = "arithmetic"
) -> list[float]:
    """Return log R of every row that has perturbed answers."""
    rows = likelihoods_of(measured, split, task)
    return [log_ratio(one, mean) for one in rows if one.perturbed]


def log_ratio(one: AnswerLikelihood, mean: Mean = "arithmetic") -> float:
    """Return the logarithm of R = mean of the perturbed answers' P / the paraphrased answer's P.

    P is the probability raised to the power 1 / tokens. If there is no paraphrased answer, the
    answer itself is used. ``arithmetic`` is the mean of probabilities, as in the paper's equation;
    ``geometric`` is the exponential of the mean log-probability, as in its code.
    """
    logps = -np.asarray(one.perturbed)
    wrong = logps.mean() if mean == "geometric" else np.logaddexp.reduce(logps) - np.log(len(logps))
    right = -(one.nll if one.paraphrased is None else one.paraphrased)
    return float(wrong - right)


def named(metric: str, mean: Mean) -> str:
    """Return the metric's name, with the name of the mean if it is not the paper's."""
    return metric if mean == "arithmetic" else f"{metric}_{mean}"
