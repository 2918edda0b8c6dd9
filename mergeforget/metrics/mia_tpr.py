"""True-positive rate of the loss attack at a low false-positive rate."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import membership_definition, signals_of
from mergeforget.metrics._statistics import interval_of, share_above_draws
from mergeforget.score import Score


@metric("mia_tpr", source="Membership Inference Attacks From First Principles, arXiv:2112.03570")
def mia_tpr(
    measured: Measured, split: str = "mia", task: str = "", *, false_positives: float = 0.01
) -> Score | None:
    """Share of members with a lower loss than all but 1 % of the non-members.

    With fewer than 100 non-members no false positive is allowed. The chance level is that of an
    uninformative signal, ``(allowed + 1) / (n + 1)`` for n non-members. The interval resamples
    members and non-members and thus the threshold, so it is wide with few non-members.
    """
    members, nonmembers, subjects = signals_of(measured, "loss", task)
    if not members or not nonmembers:
        return None
    allowed = int(false_positives * len(nonmembers) + 1e-9)
    threshold = sorted(nonmembers, reverse=True)[allowed]
    draws = share_above_draws(members, nonmembers, allowed, subjects=subjects)
    return Score(
        "mia_tpr",
        split,
        sum(value > threshold for value in members) / len(members),
        "lower",
        len(members),
        task=task,
        interval=interval_of(draws),
        chance=(allowed + 1) / (len(nonmembers) + 1),
        definition=membership_definition("mia-loss-tpr-at-fpr", measured),
        draws=draws,
    )
