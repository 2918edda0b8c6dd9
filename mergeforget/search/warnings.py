"""Where the half that reports tells another story than the half that chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mergeforget.score import Score, find
from mergeforget.search.objective import known_score
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
