"""How many members the loss attack is sure of."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import signals_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "mia-loss-tpr-at-fpr@1"


@metric("mia_tpr", source="Membership Inference Attacks From First Principles, arXiv:2112.03570")
def mia_tpr(
    measured: Measured, split: str = "mia", task: str = "", *, false_positives: float = 0.01
) -> Score | None:
    """Share of members with a lower loss than all but 1 % of the non-members.

    With fewer than 100 non-members no false positive is allowed at all.
    """
    members, nonmembers = signals_of(measured, "loss", task)
    if not members or not nonmembers:
        return None
    allowed = int(false_positives * len(nonmembers) + 1e-9)
    threshold = sorted(nonmembers, reverse=True)[allowed]
    values = [float(value > threshold) for value in members]
    return mean_score(
        "mia_tpr", split, values, "lower", task=task, chance=false_positives, definition=DEFINITION
    )
