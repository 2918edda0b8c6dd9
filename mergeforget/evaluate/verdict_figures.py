"""Select the scores that a verdict uses: revealed answers and the MIA AUC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mergeforget.score import Score, find

Difference = tuple[float, tuple[float, float]]  # value and its 95 % interval
MARGIN = 0.2  # distance of an AUC from 0.5 at which members are distinguishable
RARE = 0.01  # p-value below which leaks count as memory
MOST = 1000  # largest number of additional people that is reported
PARTS = ("all", "report", "choose")  # each part has all forget rows
ANSWERS = ("exact_match", "knowledge", "regurgitation", "verbatim_rouge", "rouge_l_f1", "refused",
           "empty")  # metrics of generated answers that include rows that cannot leak # fmt: skip


@dataclass(frozen=True)
class EarlierAnswers:
    """The answers of an earlier request that a model reveals.

    Attributes:
        share: Share of the answers that are revealed, of those that can be counted.
        asked: Number of answers that can be counted (``metrics.leak_rate.can_leak``).
        beyond: Whether more are revealed than by chance.
    """

    share: float
    asked: int = 1
    beyond: bool = True

    @classmethod
    def stored(cls, values: Any) -> EarlierAnswers:
        """Return stored values; earlier versions stored the share alone."""
        if isinstance(values, Mapping):
            return cls(float(values["share"]), int(values["asked"]), bool(values["beyond"]))
        return cls(float(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def leak_rates(scores: Sequence[Score]) -> list[Score]:
    """Return the leak rate of the forget rows in each part that has one."""
    found = (find(scores, "leak_rate", "forget", part=part) for part in PARTS)
    return [score for score in found if score is not None]


def leaks_of(scores: Sequence[Score]) -> tuple[int, int, float]:
    """Return leaked and counted forget rows over the whole data, and the leak rate by chance.

    Only ``leak_rate`` is used. Other metrics of answers also count rows that cannot leak, such as
    those whose prompt contains the answer, and their chance level does not describe these rows.

    Parts may cover different rows: ``evaluate --limit`` replaces only ``all``. The part with
    the most rows is used, ``all`` among equal ones; or ``all`` if it alone
    reveals more than chance does.
    """
    found = leak_rates(scores)
    if not found:
        return 0, 0, 0.0
    most = max(found, key=lambda score: score.n)
    score = most if _beyond_chance(most) or not _beyond_chance(found[0]) else found[0]
    return _leaks(score), score.n, score.chance or 0.0


def _leaks(score: Score) -> int:
    return round(score.value * score.n)


def _beyond_chance(score: Score) -> bool:
    return at_least(_leaks(score), score.n, score.chance or 0.0) < RARE


def answered(scores: Sequence[Score], parts: Sequence[str] = PARTS) -> int:
    """Return the number of forget rows that were answered, including those that cannot leak."""
    counts = [
        score.n
        for score in scores
        if score.split == "forget" and not score.task and score.part in parts
        and score.metric in ("leak_rate", *ANSWERS)
    ]  # fmt: skip
    return max(counts, default=0)


def at_least(leaks: int, asked: int, chance: float) -> float:
    """Return the probability of at least this number of leaks by chance (binomial tail).

    >>> at_least(1, 2, 0.5)
    0.75
    """
    if leaks <= 0:
        return 1.0
    if leaks > asked or chance <= 0:
        return 0.0
    from scipy.special import betainc  # exact for thousands of rows, where comb(n, k) overflows

    return float(betainc(leaks, asked - leaks + 1, min(1.0, chance)))


def rate_of(scores: Sequence[Score]) -> float:
    """Return the share of revealed forget answers; 0 without any."""
    leaks, asked, _ = leaks_of(scores)
    return leaks / asked if asked else 0.0


def of_one_subject(scores: Sequence[Score]) -> bool:
    """Return whether all forget answers are about one subject."""
    return any(score.subjects == 1 for score in leak_rates(scores))


def finite(scores: Sequence[Score]) -> list[Score]:
    """Return the scores without those that are not a number, which no comparison would notice."""
    return [score for score in scores if math.isfinite(score.value)]


def auc_score(scores: Sequence[Score]) -> Score | None:
    """Return the MIA AUC on the report split if there is one, else on all documents."""
    found = (find(scores, "mia_auc", "mia", part=part) for part in ("report", "all"))
    return next((score for score in found if score is not None), None)


def variant_of(area: Score | None) -> str:
    """Return the prompt variant of a MIA AUC, the one farthest from 0.5; empty if unknown."""
    by_variant = (area.by_variant if area is not None else None) or {}
    return max(by_variant, key=lambda variant: abs(by_variant[variant] - 0.5), default="")


def auc_interval(score: Score) -> tuple[float, float]:
    """Return the 95 % interval of an AUC; for a score without one, that of ``n`` documents."""
    if score.interval is not None and all(map(math.isfinite, score.interval)):
        return score.interval
    from mergeforget.metrics._statistics import auc_deviation

    half = max(1.0, score.n / 2)
    reach = 1.96 * float(auc_deviation(min(max(score.value, 0.02), 0.98), half, half))
    return max(0.0, score.value - reach), min(1.0, score.value + reach)


def more_people(score: Score, interval: tuple[float, float], bound: float) -> int | None:
    """Return the approximate number of additional people that decide the AUC; None above ``MOST``.

    The width of an interval decreases with the square root of the number of people.

    Args:
        bound: AUC that the interval must no longer contain, ``0.5 + MARGIN`` or ``0.5 - MARGIN``.
    """
    reach = max(interval[1] - score.value, score.value - interval[0])
    wanted = abs(bound - score.value)
    people = score.subjects or score.n
    if wanted < 1e-9 or not people:
        return None
    needed = math.ceil(people * (reach / wanted) ** 2 - 1e-6) - people  # 0.7 - 0.6 < 0.1
    return max(1, needed) if needed <= MOST else None


def unpaired_difference(one: Score, other: Score) -> Difference:
    """Difference of two AUCs from their intervals; wider than a paired one.

    Source: Newcombe 1998, the square-and-add method for a difference of two estimates.
    """
    (low, high), (least, most) = auc_interval(one), auc_interval(other)
    value = one.value - other.value
    down = math.hypot(one.value - low, most - other.value)
    up = math.hypot(high - one.value, other.value - least)
    return value, (value - down, value + up)


def knew(before: Sequence[Score], membership: bool) -> bool:
    """Return whether the model before unlearning knew more than by chance."""
    leaks, asked, rate = leaks_of(before)
    area = auc_score(before) if membership else None
    told_apart = area is not None and auc_interval(area)[0] > 0.5
    return told_apart or (leaks > 0 and at_least(leaks, asked, rate) < RARE)
