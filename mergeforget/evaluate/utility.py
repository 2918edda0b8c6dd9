"""The utility of a model relative to the model before unlearning, and its floor."""

from __future__ import annotations

from collections.abc import Sequence

from mergeforget.errors import UsageError, suggest
from mergeforget.score import Score

BY_DEFAULT = ("mmlu", "model_utility")  # the first that was measured


def utility_ratio(
    scores: Sequence[Score], before: Sequence[Score], metric: str | None = None
) -> Score | None:
    """The utility of a model over that of the model before unlearning.

    None where either was not measured, or on other data.

    Args:
        metric: of a score that is better higher: NAME, NAME/SPLIT or NAME/SPLIT/TASK; by default
            MMLU, else TOFU's model utility.

    Raises:
        UsageError: no score is called so, or it is not better higher.
    """
    named = [metric] if metric else [name for name in BY_DEFAULT if _find(scores, name)]
    if not named:
        return None
    own, theirs = _find(scores, named[0]), _find(before, named[0])
    if own is None or own.better != "higher":
        fit = sorted({f"{s.metric}/{s.split}" for s in scores if s.better == "higher"})
        raise UsageError(
            f"{metric!r} cannot be the utility: "
            f"{'no score is called so' if own is None else 'it is not better higher'}."
            f"{suggest(named[0], fit)} There are: {', '.join(fit)}."
        )
    if (
        theirs is None
        or theirs.value <= 0
        or (own.n, own.definition) != (theirs.n, theirs.definition)
    ):
        return None
    return Score(
        "utility_ratio",
        "all",
        own.value / theirs.value,
        "higher",
        own.n,
        definition=f"utility-ratio/{own.metric}/{own.split}@1",
    )


def below_floor(name: str, ratio: Score, floor: float) -> str:
    """A warning where a model keeps less of its utility than the floor, else nothing."""
    if ratio.value >= floor:
        return ""
    what = ratio.definition.split("/", 1)[1].rpartition("@")[0]
    return (
        f"{name} keeps {ratio.value:.1%} of the utility ({what}) of the model before, below the "
        f"floor of {floor:.0%}: it has lost more than the forget set."
    )


def _find(scores: Sequence[Score], named: str) -> Score | None:
    """The first score of that name; over all tasks where it names none."""
    metric, split, task = [*named.split("/", 2), "", ""][:3]
    fit = [s for s in scores if s.metric == metric and (not split or s.split == split)]
    return next((s for s in fit if s.task == task), None)
