"""Whether a pair leaves anything to merge: one end must forget too much, the other too little."""

from __future__ import annotations

from collections.abc import Sequence

from mergeforget.score import Score, find

NEAR = 0.05  # of an AUC to 0.5: such an end is on neither side


def one_sided(over: Sequence[Score], under: Sequence[Score]) -> str | None:
    """A warning, with the way out, where chance does not lie between over and under.

    Read on the half that chooses; None where it does, or where there are no non-members.
    """
    found = [find(scores, "mia_auc", "mia", part="choose") for scores in (over, under)]
    values = [score.value for score in found if score is not None]
    if len(values) < 2 or min(values) <= 0.5 + NEAR and max(values) >= 0.5 - NEAR:
        return None
    told = f"(MIA AUC {values[0]:.3f} and {values[1]:.3f}; chance is 0.5)"
    if min(values) > 0.5:
        return (
            f"Over and under both still know the forget set {told}: no merge of the two is "
            "balanced. Let over forget more: a higher --set pair.over.learning_rate, or more "
            "pair.over.epochs."
        )
    return (
        f"Over and under both avoid the forget set {told}, which gives it away as well. Let under "
        "forget less: a lower --set pair.under.learning_rate, or fewer pair.under.epochs."
    )
