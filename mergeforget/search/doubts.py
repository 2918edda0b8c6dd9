"""What keeps the best candidate from being balanced: chance is far, or too much is lost."""

from __future__ import annotations

from collections.abc import Sequence

from mergeforget.score import Score, find
from mergeforget.search.objective import Objective, known_share
from mergeforget.search.split import PARTS

FAR = 0.25  # from 0.5: an AUC that no words should call balanced
KEPT = 0.5  # share of what the model before knew of retain; with less of it a merge is broken
WHERE = dict(zip(PARTS, ("on the half that chooses", "on the half that reports"), strict=True))


def doubts(scores: Sequence[Score], base: Sequence[Score], objective: Objective) -> list[str]:
    """Reasons not to call a candidate balanced, each with its figures; none where it is.

    Args:
        scores: of the candidate, on both halves.
        base: of the model before.
    """
    return [
        f"{reason} {WHERE[part]}"
        for part in PARTS
        for reason in (*_far(scores, part), *_lost(scores, base, part),
                       *_below(scores, base, objective, part))
    ]  # fmt: skip


def warning_of(name: str, reasons: Sequence[str]) -> str | None:
    """The reasons as a warning, with the way out."""
    if not reasons:
        return None
    return (
        f"{name} is not balanced: {'; '.join(reasons)}. Search other densities and methods, or "
        "with another floor (`--objective 'mia if retain >= 80%'`); where nothing reaches it, "
        "train the pair again: over with more epochs or a lower rate keeps more, with a higher "
        "rate it forgets more."
    )


def _far(scores: Sequence[Score], part: str) -> list[str]:
    auc = find(scores, "mia_auc", "mia", part=part)
    far = auc is not None and abs(auc.value - 0.5) > FAR
    return [f"its MIA AUC is {auc.value:.3f}"] if far and auc else []


def _lost(scores: Sequence[Score], base: Sequence[Score], part: str) -> list[str]:
    now, before = (known_share(of, "retain", part) for of in (scores, base))
    if now is None or not before or now >= KEPT * before:
        return []
    return [f"it knows {now:.0%} of retain, where the model before knew {before:.0%},"]


def _below(
    scores: Sequence[Score], base: Sequence[Score], objective: Objective, part: str
) -> list[str]:
    return [
        f"it misses the floor {missed.floor} ({missed.found:.3f}, wanted {missed.wanted:.3f})"
        for missed in objective.missed(scores, base, part)
    ]
