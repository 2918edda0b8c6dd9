"""How many members the loss attack is sure of."""

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

    With fewer than 100 non-members no false positive is allowed at all. Chance is what a signal
    that knows nothing gives: of n non-members and one member, each is as likely to be among the
    highest ``allowed + 1``. The interval draws members and non-members, and finds the threshold
    anew in each draw; the highest of few non-members is often not drawn, so it reaches far up.
    """
    members, nonmembers, subjects = signals_of(measured, "loss", task)
    if not members or not nonmembers:
        return None
    allowed = int(false_positives * len(nonmembers) + 1e-9)
    threshold = sorted(nonmembers, reverse=True)[allowed]
    draws = share_above_draws(members, nonmembers, allowed, subjects=subjects[0])
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
