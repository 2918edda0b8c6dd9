"""Measures how much better a model predicts forget rows than a control does, and judges it.

The values of a subject (a person or document) are compared with the control's, and the difference
with that on the holdout. Subjects are the unit of every interval and test, because rows of one
subject are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mergeforget.attack.result import Finding

CONVICT = 0.001  # significance level per attack; a dozen attacks have an error rate near 1 %
RANKED = 0.0015  # level of the rank test that a conviction requires as well
DOUBT = 0.05  # p-value above which the data are consistent with a model without the data
LEAST_SHARE = 0.1  # minimum advantage to convict, relative to the model before unlearning
MISSED_SHARE = 0.25  # maximum upper confidence limit to clear, relative to the same
LEAST_NATS = 0.1  # absolute limit in nats per token if the model before unlearning is unknown
FOREIGN = 0.2  # distance from 0.5 of the control's AUC that marks a holdout of another kind
OUTLIER = 0.01  # p-value below which a single subject stands out from the others

Values = Mapping[str, float]  # subject -> mean of its rows; losses are in nats per token


@dataclass(frozen=True)
class Estimate:
    """A mean over subjects with its 95 % interval.

    Attributes:
        p: One-sided p-value of a mean above 0; 1 if it cannot be computed.
    """

    value: float
    low: float
    high: float
    p: float = 1.0

    def __str__(self) -> str:
        if not math.isfinite(self.low):
            return f"{self.value:.2f} (no interval: a single subject)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return {k: v if math.isfinite(v) else None for k, v in vars(self).items()}


@dataclass(frozen=True)
class Outlier:
    """The subjects with the largest values.

    Attributes:
        subject: The subject with the largest value.
        value: The smallest value of the ``count`` subjects that differ most from the others.
        p: Probability that the largest of equally many subjects like the others is at least as
            large.
    """

    subject: str
    value: float
    p: float
    count: int = 1

    @classmethod
    def of(cls, values: Values) -> Outlier | None:
        """Compare the largest values with the others; None for fewer than four subjects.

        The distance of a value from the mean of the smaller ones has a t distribution; the p-value
        is multiplied by the number of subjects (Grubbs' test, with the subject left out of the
        variance). Several outliers hide each other, because each widens the variance of the others.
        So up to a third of the subjects are removed one by one, the largest first, and the smallest
        p-value counts, as in the generalised extreme studentised deviate test.

        Source: Rosner 1983, Percentage points for a generalized ESD many-outlier procedure.

        Example:
            >>> Outlier.of({"a": 0.1, "b": -0.2, "c": 0.0, "d": 0.2, "e": 5.0}).subject
            'e'
        """
        from scipy import stats

        if len(values) < 4 or not all(map(math.isfinite, values.values())):
            return None
        order = sorted(values, key=lambda one: -values[one])
        outliers = []
        for count in range(1, max(1, len(values) // 3) + 1):
            others = np.array([values[one] for one in order[count:]])
            error = float(others.std(ddof=1)) * math.sqrt(1 + 1 / len(others))
            value = values[order[count - 1]]
            distance = value - float(others.mean())
            chance = float(stats.t.sf(distance / max(error, 1e-12), len(others) - 1))
            outliers.append(cls(order[0], value, min(1.0, (len(others) + 1) * chance), count))
        return min(outliers, key=lambda one: one.p)


@dataclass(frozen=True)
class Advantage:
    """Advantage of a model over a control in predicting text.

    Attributes:
        over_control: Mean over forget subjects of the control's loss minus the model's.
        beyond_holdout: The same minus the mean over holdout subjects; None without a holdout.
        conditions: Number of conditions (bits, steps, layers) in which the advantage was tested.
        comparable: Whether forget and holdout are alike to the control; see ``same_kind``.
        rank_p: P-value of the rank test of forget against holdout; see ``ranked``.
        outlier: The forget subjects that are furthest ahead, if they were determined.
    """

    over_control: Estimate
    beyond_holdout: Estimate | None
    conditions: int = 1
    comparable: bool = True
    outlier: Outlier | None = None
    rank_p: float = 0.0

    @classmethod
    def of(
        cls, forget: Values, holdout: Values, conditions: int, comparable: bool, *, single: bool
    ) -> Advantage:
        """Return the advantage, from that of each forget and holdout subject.

        Args:
            single: Whether to look for single subjects that stand out. Values that are counts or
                ranks are equal for most subjects, and any other value stands out then.
        """
        beyond = difference(forget, holdout) if holdout else None
        outlier = Outlier.of(forget) if single else None
        return cls(
            difference(forget), beyond, conditions, comparable, outlier, ranked(forget, holdout)
        )

    @property
    def p(self) -> float:
        """The p-value of ``beyond_holdout``, times the number of conditions (Bonferroni).

        It is 1 if the model is not ahead of the control on the forget rows: a model whose loss rose
        more on the holdout than on the forget rows has an advantage, but no knowledge.
        """
        if self.beyond_holdout is None or self.over_control.p > DOUBT:
            return 1.0
        return min(1.0, self.conditions * self.beyond_holdout.p)

    @property
    def value(self) -> float:
        """The advantage beyond the holdout, or over the control where there is no holdout."""
        return (self.beyond_holdout or self.over_control).value

    @property
    def high(self) -> float:
        """Upper confidence limit of the advantage: the lower of the two upper limits."""
        beyond = self.beyond_holdout if self.comparable else None
        return min(self.over_control.high, beyond.high) if beyond else self.over_control.high

    def __str__(self) -> str:
        return str(self.beyond_holdout or self.over_control)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        beyond = self.beyond_holdout
        return {
            "over_control": self.over_control.to_dict(),
            "beyond_holdout": beyond.to_dict() if beyond else None,
            "p": self.p,
            "rank_p": self.rank_p,
            "comparable": self.comparable,
            **({"outlier": vars(self.outlier)} if self.outlier else {}),
        }

    def stands_out(self, whole: float | None) -> bool:
        """Return whether one subject's advantage is an outlier and much of what the model knew."""
        one = self.outlier
        if one is None or whole is None:
            return False
        return self.conditions * one.p <= OUTLIER and one.value >= MISSED_SHARE * whole

    def damaged(self, whole: float | None) -> bool:
        """Return whether the model predicts the holdout worse than the control does.

        The difference is at least a tenth of the advantage of the model before unlearning. A
        damaged model predicts all text worse than the control, the forget rows included, so
        ``over_control`` cannot clear it.

        Args:
            whole: Value for the model before unlearning.
        """
        if self.beyond_holdout is None or not self.comparable:
            return False
        least = LEAST_SHARE * whole if whole else LEAST_NATS
        return self.over_control.value - self.beyond_holdout.value < -least


def same_kind(forget: Values, holdout: Values) -> bool:
    """Return whether a model that saw neither set predicts forget and holdout subjects alike.

    A model trained on text like the forget rows predicts them better than a control without ever
    having seen them. The holdout shows how much better only where it is text of the same kind.

    Args:
        forget, holdout: Values of the control by subject.

    Returns:
        False where the two differ with p <= 0.01 (Mann-Whitney) and one subject of the pair has
        the larger value in more than 70 % of pairs.

    Example:
        >>> same_kind({"a": 1.0, "b": 2.0}, {"c": 1.5, "d": 1.7})
        True
    """
    from scipy.stats import mannwhitneyu

    one, other = list(forget.values()), list(holdout.values())
    if not one or not other:
        return True
    test = mannwhitneyu(one, other)
    return bool(test.pvalue > 0.01 or abs(test.statistic / len(one) / len(other) - 0.5) < FOREIGN)


def ranked(forget: Values, holdout: Values) -> float:
    """Return the one-sided p-value of larger values in forget than in holdout (Mann-Whitney).

    Where few holdout subjects are compared with many forget subjects and the values are skewed,
    Welch's t-tests of all attacks convict up to 13 % of innocent models (docs/evidence.md). The
    distribution of ranks does not depend on that of the values.

    Example:
        >>> round(ranked({"a": 3.0, "b": 4.0}, {"c": 1.0, "d": 2.0}), 3)  # 1 of 6 orders
        0.167
    """
    from scipy.stats import mannwhitneyu

    one, other = list(forget.values()), list(holdout.values())
    if not one or not other or not all(map(math.isfinite, (*one, *other))):
        return 1.0
    return float(mannwhitneyu(one, other, alternative="greater").pvalue)


def difference(values: Values, others: Values | None = None) -> Estimate:
    """Return the mean over subjects, minus the mean over other subjects if given.

    The interval is Student's (Welch's for two groups), because a percentile bootstrap is too narrow
    with few subjects. A single subject has no interval.

    Example:
        >>> difference({"a": 1.0, "b": 3.0}, {"c": 0.5, "d": 0.5}).value
        1.5
    """
    from scipy import stats

    groups = [np.fromiter(g.values(), float) for g in (values, others) if g]
    value = float(groups[0].mean() - (groups[1].mean() if len(groups) > 1 else 0.0))
    if min(len(g) for g in groups) < 2:
        return Estimate(value, -math.inf, math.inf)
    parts = [float(g.var(ddof=1)) / len(g) for g in groups]
    error = math.sqrt(sum(parts))
    if not math.isfinite(error):  # an infinite loss: a token of probability 0
        return Estimate(value, -math.inf, math.inf)
    if error < 1e-12:
        return Estimate(value, value, value, 0.0 if value > 1e-9 else 1.0)
    freedom = sum(parts) ** 2 / sum(v**2 / (len(g) - 1) for v, g in zip(parts, groups, strict=True))
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(value, value - half, value + half, float(stats.t.sf(value / error, freedom)))


def subtracted(first: Values, second: Values) -> dict[str, float]:
    """Return ``first - second`` for every subject."""
    return {subject: first[subject] - second[subject] for subject in first}


def judge(advantage: Advantage, known: float | None) -> Finding:
    """Judge an advantage over the control, in nats per token.

    Args:
        advantage: Advantage of the attacked model.
        known: Value for the model before unlearning; None if it was not measured.

    Returns:
        ``traces``: p <= ``CONVICT``, the rank test has p <= ``RANKED``, the value reaches a tenth
        of ``known``, and forget and holdout are text of one kind; ``none found``: p > ``DOUBT``, at
        most a quarter of ``known`` may have gone unseen, and no subject stands out by as much; else
        ``undecided``. For a ``damaged`` model, only the advantage beyond the holdout counts.
    """
    if advantage.beyond_holdout is None:
        return "undecided"
    whole = known if known is not None and known > 0 else None
    sure = advantage.p <= CONVICT and advantage.rank_p <= RANKED
    if sure and advantage.value >= (LEAST_SHARE * whole if whole else LEAST_NATS):
        return "traces" if advantage.comparable else "undecided"
    missed = MISSED_SHARE * whole if whole else LEAST_NATS
    high = advantage.beyond_holdout.high if advantage.damaged(whole) else advantage.high
    clear = advantage.p > DOUBT and high < missed and not advantage.stands_out(whole)
    return "none found" if clear else "undecided"
