"""Where the half that reports tells another story than the half that chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mergeforget.score import Score, find
from mergeforget.search.objective import Objective, known_score, known_share
from mergeforget.search.split import PARTS

DISAGREE = 0.1  # difference between the halves that is worth a warning, of an AUC or of a share


class Gap(NamedTuple):
    """One figure on both halves.

    Attributes:
        chance: the difference that chance alone stays within in 95 % of draws.
    """

    label: str
    choose: float
    report: float
    chance: float

    @property
    def apart(self) -> float:
        return abs(self.choose - self.report)

    def __str__(self) -> str:
        chance = (
            f"chance alone gives up to {self.chance:.2f}"
            if self.apart <= self.chance
            else f"more than the {self.chance:.2f} that chance gives"
        )
        return (
            f"{self.label} {self.choose:.3f} where it was chosen, {self.report:.3f} where it is "
            f"reported ({chance})"
        )


def disagreement(name: str, scores: Sequence[Score]) -> str | None:
    """A warning about a candidate, or None where both halves say the same.

    Membership inference, retention and forgetting are compared; a floor that is kept on one half
    only is told by ``doubts``.

    Args:
        scores: of the candidate, on both halves.
    """
    gaps = [gap for gap in gaps_of(scores) if gap.apart > DISAGREE]
    if not gaps:
        return None
    told = [f"The halves disagree about {name}: {'; '.join(map(str, gaps))}."]
    if any(gap.apart > gap.chance for gap in gaps):
        told.append("The two halves differ, so do not trust the choice.")
    else:
        told.append("Use more documents and questions before you trust the choice.")
    return " ".join(told)


def gaps_of(scores: Sequence[Score]) -> list[Gap]:
    """MIA AUC and what is still known of retain and forget, as far as both halves have them."""
    found = []
    chose, report = (find(scores, "mia_auc", "mia", part=part) for part in PARTS)
    if chose and report:
        chance = 1.96 * math.hypot(auc_deviation(chose.n), auc_deviation(report.n))
        found.append(Gap("MIA AUC", chose.value, report.value, chance))
    for split in ("retain", "forget"):
        chose, report = (known_score(scores, split, part) for part in PARTS)
        if chose and report:
            chance = 1.96 * share_deviation(chose, report)
            found.append(Gap(f"known of {split}", chose.value, report.value, chance))
    return found


def auc_deviation(n: int) -> float:
    """Standard deviation of an AUC by chance, with n / 2 members and n / 2 non-members.

    Source: Mann-Whitney U without ties, ``sqrt((m + k + 1) / (12 m k))``.
    """
    half = max(1.0, n / 2)
    return math.sqrt((2 * half + 1) / (12 * half * half))


def share_deviation(one: Score, other: Score) -> float:
    """Standard deviation of the difference of two shares that are equal but for chance.

    Source: the two-proportion z-test, ``sqrt(p (1 - p) (1 / n + 1 / m))`` with p of both together.
    """
    n, m = max(1, one.n), max(1, other.n)
    p = (n * one.value + m * other.value) / (n + m)
    return math.sqrt(max(0.0, p * (1 - p)) * (1 / n + 1 / m))


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
