"""Whether the loss distinguishes documents of the forget set from unseen documents."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import membership_definition, signals_of
from mergeforget.metrics._statistics import auc, auc_draws, interval_of
from mergeforget.score import Score


@metric(
    "mia_auc", source="SemEval-2025 Task 4, evaluation script; the loss attack: arXiv:1709.01604"
)
def mia_auc(measured: Measured, split: str = "mia", task: str = "") -> Score | None:
    """ROC AUC of the loss attack, member = 1, score = -NLL; None without both kinds of documents.

    Near 1, the model still knows the forget set. Near 0, it avoids the forget set, which identifies
    the set as well. At 0.5, it treats the forget set like unseen documents.
    """
    members, nonmembers, subjects = signals_of(measured, "loss", task)
    if not members or not nonmembers:
        return None
    draws = auc_draws(members, nonmembers, subjects=subjects)
    return Score(
        "mia_auc",
        split,
        auc(members, nonmembers),
        "nearer",
        len(members) + len(nonmembers),
        task=task,
        interval=interval_of(draws),
        chance=0.5,
        target=0.5,
        definition=membership_definition("mia-loss-auc", measured),
        subjects=sum(len(set(side)) for side in subjects),
        draws=draws,
    )
