"""Whether the unlearned model treats the forget set as one that never saw it does."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics.truth_ratio import DEFINITIONS, Mean, log_ratios, named
from mergeforget.score import Score


@metric("forget_quality", source="TOFU, arXiv:2401.06121, section 2.2.2")
def forget_quality(
    measured: Measured, split: str = "forget", task: str = "", *, mean: Mean = "arithmetic"
) -> Score | None:
    """p-value of the two-sample Kolmogorov-Smirnov test between two models' truth ratios.

    One sample is of this model, the other of ``measured.retrained``; None without it. High where
    the test cannot tell the models apart, which with few rows it never can. R is compared by its
    logarithm: the test reads the order alone.
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
        definition=definition,
    )
