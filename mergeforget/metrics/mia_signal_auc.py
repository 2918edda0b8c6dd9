"""Membership inference with signals other than the loss."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import METRICS, metric
from mergeforget.metrics._rows import membership_definition, signals_of
from mergeforget.metrics._statistics import auc, auc_draws, interval_of
from mergeforget.score import Score

SIGNALS = ("zlib", "min_k_20", "min_k_40", "min_k_plus_20", "min_k_plus_40",
           "reference", "gradient_norm", "level")  # fmt: skip


@metric(
    "mia_signal_auc",
    source="zlib, reference: arXiv:2012.07805; min-k: 2310.16789; min-k++: 2404.02936; "
    "gradient norm: 2402.17012",
)
def mia_signal_auc(
    measured: Measured, split: str = "mia", task: str = "", *, signal: str = "min_k_20"
) -> Score | None:
    """ROC AUC of one signal, member = 1; None if the documents do not have it.

    The name of the score is ``mia_auc_`` followed by the signal, for example ``mia_auc_min_k_20``.
    """
    members, nonmembers, subjects = signals_of(measured, signal, task)
    if not members or not nonmembers:
        return None
    draws = auc_draws(members, nonmembers, subjects=subjects)
    return Score(
        f"mia_auc_{signal}",
        split,
        auc(members, nonmembers),
        "nearer",
        len(members) + len(nonmembers),
        task=task,
        interval=interval_of(draws),
        chance=0.5,
        target=0.5,
        definition=membership_definition(f"mia-{signal.replace('_', '-')}-auc", measured),
        subjects=sum(len(set(side)) for side in subjects),
        draws=draws,
    )


def attack_scores(measured: Measured) -> list[Score]:
    """Return the true-positive rate of the loss attack, and the AUC of every measured signal."""
    scores = [METRICS.get("mia_tpr").fn(measured)]
    scores += [METRICS.get("mia_signal_auc").fn(measured, signal=signal) for signal in SIGNALS]
    return [score for score in scores if score is not None]
