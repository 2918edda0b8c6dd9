"""Warnings of a search: splits that disagree, unbalanced candidates, one-sided pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mergeforget.evaluate.verdict import judge
from mergeforget.evaluate.verdict_figures import MARGIN, auc_interval
from mergeforget.score import Score, find
from mergeforget.search.objective import Objective, compared_auc, known_score, known_share
from mergeforget.search.split import PARTS

DISAGREE = 0.1  # smallest difference of an AUC or a share between the splits to warn about


class Gap(NamedTuple):
    """One score on both splits.

    Attributes:
        chance: 95 % bound of the difference that chance alone explains.
    """

    label: str
    choose: float
    report: float
    chance: float

    @property
    def distance(self) -> float:
        """Absolute difference of the two splits."""
        return abs(self.choose - self.report)

    def __str__(self) -> str:
        chance = (
            "with so few people, chance alone explains any difference"
            if self.chance >= 1
            else f"chance alone explains up to {self.chance:.2f}"
            if self.distance <= self.chance
            else f"more than the {self.chance:.2f} that chance explains"
        )
        return (
            f"{self.label} {self.choose:.3f} on the selection split, {self.report:.3f} on the "
            f"report split ({chance})"
        )


def disagreement(name: str, scores: Sequence[Score]) -> str | None:
    """Return a warning about a candidate whose scores differ between the splits; None otherwise.

    Compares membership inference, retention and forgetting. ``reasons_against`` reports a
    floor that is reached on one split only.

    Args:
        scores: Scores of the candidate on both splits.
    """
    gaps = [gap for gap in gaps_of(scores) if gap.distance > DISAGREE]
    if not gaps:
        return None
    listed = "; ".join(map(str, gaps))
    if any(gap.distance > gap.chance for gap in gaps):
        return (
            f"The two splits disagree about {name}: {listed}. Chance does not explain the "
            "difference, so do not rely on the choice."
        )
    return (
        f"The scores of {name} differ between the splits, by no more than chance explains: "
        f"{listed}. Use more documents and questions before you rely on the choice."
    )


def gaps_of(scores: Sequence[Score]) -> list[Gap]:
    """Return the MIA AUC and the known share of retain and forget that both splits have."""
    gaps = []
    chose, report = (find(scores, "mia_auc", "mia", part=part) for part in PARTS)
    if chose and report:
        chance = 1.96 * math.hypot(auc_deviation(chose.n), auc_deviation(report.n))
        gaps.append(Gap("MIA AUC", chose.value, report.value, chance))
    for split in ("retain", "forget"):
        chose, report = (known_score(scores, split, part) for part in PARTS)
        if chose and report:
            chance = 1.96 * share_deviation(chose, report)
            gaps.append(Gap(f"known of {split}", chose.value, report.value, chance))
    return gaps


def auc_deviation(n: int) -> float:
    """Standard deviation of an AUC of 0.5, for n / 2 members and n / 2 non-members.

    Source: Mann-Whitney U without ties, ``sqrt((m + k + 1) / (12 m k))``.
    """
    half = max(1.0, n / 2)
    return math.sqrt((2 * half + 1) / (12 * half * half))


def share_deviation(one: Score, other: Score) -> float:
    """Standard deviation of the difference of two estimates of the same share.

    Source: two-proportion z-test, ``sqrt(p (1 - p) (1 / n + 1 / m))`` with the pooled p.
    """
    n, m = max(1, one.n), max(1, other.n)
    p = (n * one.value + m * other.value) / (n + m)
    return math.sqrt(max(0.0, p * (1 - p)) * (1 / n + 1 / m))


KEPT = 0.5  # a merge that keeps a smaller share of the base's retain answers is broken
WHERE = dict(zip(PARTS, ("on the selection split", "on the report split"), strict=True))


def reasons_against(
    scores: Sequence[Score],
    base: Sequence[Score],
    objective: Objective,
    evaluated: tuple[int, int] | None = None,
) -> list[str]:
    """Return the reasons not to call a candidate balanced; none where it is.

    Args:
        scores: Scores of the candidate on both splits.
        base: Scores of the base model.
        evaluated: Number of forget rows that were evaluated, and number of rows to forget.
    """
    verdict = judge(scores, before=base, evaluated=evaluated)
    reasons = [] if verdict.state == "FORGOTTEN" else [plain(r) for r in verdict.reasons]
    if verdict.state == "FORGOTTEN" and not verdict.balanced:
        reasons = [plain(r) for r in verdict.uncertain]
    return reasons + [
        f"{reason} {WHERE[part]}"
        for part in PARTS
        for reason in (*_lost(scores, base, part), *_below(scores, base, objective, part))
    ]


def plain(sentence: str) -> str:
    """Return a sentence as a clause: in lower case, without its full stop."""
    text = sentence.strip().rstrip(".")
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def warning_of(name: str, reasons: Sequence[str], undecided: bool = False) -> str | None:
    """Return the reasons as a warning with a way out; None without reasons.

    Args:
        undecided: Whether more data is needed, not another merge.
    """
    if not reasons:
        return None
    why = "; ".join(reason.rstrip(".") for reason in reasons)
    if undecided:
        text = f"There is not enough data to call {name} balanced: {why}."
        if any("embership" in reason or "AUC" in reason for reason in reasons):
            text += " Give more rows that were never trained on with --holdout FILE."
        return text
    return (
        f"{name} is not balanced: {why}. Search other densities and methods, or "
        "another floor (`--objective 'mia if retain >= 80%'`). If no candidate reaches it, train "
        "the pair again: more epochs or a lower learning rate of over retain more, a higher "
        "learning rate forgets more."
    )


def _lost(scores: Sequence[Score], base: Sequence[Score], part: str) -> list[str]:
    now, before = (known_share(of, "retain", part) for of in (scores, base))
    if now is None or not before or now >= KEPT * before - 1e-9:
        return []
    return [f"it knows {now:.0%} of retain, where the base knew {before:.0%},"]


def _below(
    scores: Sequence[Score], base: Sequence[Score], objective: Objective, part: str
) -> list[str]:
    return [
        f"it misses the floor {missed.floor} ({missed.found:.3f}, wanted {missed.wanted:.3f})"
        for missed in objective.missed(scores, base, part)
    ]


NEAR = 0.05  # an AUC closer to 0.5 is on neither side
MORE = (
    "To make over forget more, raise pair.over.learning_rate or pair.over.epochs with --set, or, "
    "if the recipe has pair.over.until (as level has), lower pair.over.until.auc_at_most."
)
LESS = (
    "To make under forget less, lower pair.under.learning_rate or pair.under.epochs with --set, "
    "or, if the recipe has pair.under.until (as level has), raise pair.under.until.auc_at_least."
)


def one_sided(over: Sequence[Score], under: Sequence[Score]) -> str | None:
    """Return a warning where over and under are on the same side of an AUC of 0.5.

    Uses the selection split; None where they are not, or where there are no non-members.
    """
    aucs = [compared_auc(scores, "choose") for scores in (over, under)]
    known = [score for score in aucs if score is not None]
    values = [score.value for score in known]
    if len(values) < 2 or min(values) <= 0.5 + NEAR and max(values) >= 0.5 - NEAR:
        return None
    relative = any(score.metric == "mia_auc_level" for score in known)
    figures = (
        f"(MIA AUC{' relative to the twins' if relative else ''} on the selection split: over "
        f"{values[0]:.3f}, under {values[1]:.3f}; chance is 0.5)"
    )
    above = min(values) > 0.5
    nearer = min(known, key=lambda score: abs(score.value - 0.5))
    low, high = auc_interval(nearer)
    if low <= 0.5 <= high and abs(nearer.value - 0.5) < MARGIN:
        said = (
            f"Over and under are both {'above' if above else 'below'} an AUC of 0.5 {figures}. The "
            f"95 % interval of the nearer one, {low:.2f} to {high:.2f}, contains 0.5, so a merge "
            "may still be balanced."
        )
    elif above:
        said = (
            f"Over and under both still know the forget set {figures}: no merge of the two is "
            "balanced."
        )
    else:
        said = (
            f"The forget set is identifiable by its high loss under both over and under {figures}."
        )
    return f"{said} {MORE if above else LESS}"
