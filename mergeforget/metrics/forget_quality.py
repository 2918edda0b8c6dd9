"""Whether an unlearned and a retrained model can be distinguished on the forget set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._statistics import LEVELS, RESAMPLES
from mergeforget.metrics.truth_ratio import DEFINITIONS, Mean, log_ratios, named
from mergeforget.score import Score


@metric("forget_quality", source="TOFU, arXiv:2401.06121, section 2.2.2")
def forget_quality(
    measured: Measured, split: str = "forget", task: str = "", *, mean: Mean = "arithmetic"
) -> Score | None:
    """p-value of the two-sample Kolmogorov-Smirnov test between two models' truth ratios.

    One sample is from this model, the other from ``measured.retrained``; None without it. A high
    value means that the test cannot distinguish the models, which it never can with few rows. The
    logarithm of R is compared, because the test uses only the order. The interval is a bootstrap
    over rows; resampling adds distance, so it is too low if the models are alike.
    """
    own = log_ratios(measured, split, task, mean)
    theirs = log_ratios(measured.retrained, split, task, mean) if measured.retrained else []
    if not own or not theirs:
        return None
    from scipy.stats import ks_2samp

    definition = DEFINITIONS[mean].replace("truth-ratio", "forget-quality")
    return Score(
        named("forget_quality", mean),
        split,
        float(ks_2samp(own, theirs).pvalue),
        "higher",
        len(own) + len(theirs),
        task=task,
        interval=_interval(own, theirs),
        definition=definition,
    )


def _interval(own: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the p-value."""
    from scipy.stats import ks_2samp

    draw = np.random.default_rng(0)
    values, n, m = np.unique([*own, *theirs]), len(own), len(theirs)
    drawn = [
        draw.choice(np.searchsorted(values, group), (RESAMPLES, len(group)))
        for group in (own, theirs)
    ]
    distances = [
        np.abs(np.cumsum(np.bincount(a, minlength=len(values)) / n
                         - np.bincount(b, minlength=len(values)) / m)).max()
        for a, b in zip(*drawn, strict=True)
    ]  # fmt: skip
    order = np.argsort(distances, kind="stable")
    ends = [order[round(level / 100 * (RESAMPLES - 1))] for level in LEVELS]
    high, low = (float(ks_2samp(drawn[0][i], drawn[1][i]).pvalue) for i in ends)
    return low, high
