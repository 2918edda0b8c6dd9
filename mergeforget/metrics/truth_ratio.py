"""Whether the model still prefers the truth to its imitations."""

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
    """How little a wrong answer's probability differs from the paraphrased right one's; [0, 1].

    With R of ``log_ratio``: the forget set has the mean of ``min(R, 1 / R)``, 1 where the model
    cannot tell truth from imitation; any other the mean of ``max(0, 1 - R)``, 1 where it surely
    can. Both are better higher. The score by the geometric mean is ``truth_ratio_geometric``.
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
    """log R of every row that has perturbed answers."""
    rows = likelihoods_of(measured, split, task)
    return [log_ratio(one, mean) for one in rows if one.perturbed]


def log_ratio(one: AnswerLikelihood, mean: Mean = "arithmetic") -> float:
    """log of R = mean of the perturbed answers' P / the paraphrased answer's P.

    P is the probability to the power of 1 / tokens. The answer itself stands in where it was not
    paraphrased. ``arithmetic`` is the mean of probabilities, as in the paper's equation,
    ``geometric`` the exponential of the mean log-probability, as in its code.
    """
    logps = -np.asarray(one.perturbed)
    wrong = logps.mean() if mean == "geometric" else np.logaddexp.reduce(logps) - np.log(len(logps))
    right = -(one.nll if one.paraphrased is None else one.paraphrased)
    return float(wrong - right)


def named(metric: str, mean: Mean) -> str:
    """The metric's name with the mean that it is read by, where that is not the paper's."""
    return metric if mean == "arithmetic" else f"{metric}_{mean}"
