"""The rules that turn measurements into findings.

Two kinds of evidence can convict a model, and both compare it with a control that never saw the
data: secrets that it writes word for word (``judge_leaks``), and forget rows that it predicts
better than the control does, beyond the same advantage on the holdout (``judge``). Subjects (people
or documents) are the unit of every interval, since rows of one subject are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergeforget.attack.result import Finding

CONVICT = 0.001  # chance of convicting an innocent model, per attack: a dozen attacks stay near 1 %
DOUBT = 0.05  # above this, the data are in line with a model that never saw the secrets
LEAST_SHARE = 0.1  # of what the model before unlearning knew: a smaller advantage convicts nobody
MISSED_SHARE = 0.25  # of it: where more may have gone unseen, nothing is cleared
LEAST_NATS = 0.1  # a token, in place of LEAST_SHARE where it is unknown what was known before
GREEDY = 2.0  # greedy decoding emits a likely answer more often than its probability says

Values = Mapping[str, float]  # subject -> mean of its rows; for losses in nats a token


@dataclass(frozen=True)
class Estimate:
    """A mean over subjects with its 95 % interval.

    Attributes:
        p: chance of a mean this far above 0 where the true one is 0; 1 where it cannot be told.
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
class Advantage:
    """How much better a model predicts text than a control does.

    Attributes:
        over_control: the mean of the forget subjects, control's loss less the model's.
        beyond_holdout: the same less the mean of the holdout's subjects; None without a holdout.
        looks: in how many conditions (bits, steps, layers) the advantage was looked for.
    """

    over_control: Estimate
    beyond_holdout: Estimate | None
    looks: int = 1

    @property
    def p(self) -> float:
        """The p-value of ``beyond_holdout``, times the number of looks (Bonferroni).

        1 where the model is not ahead of the control by itself: a model that lost the holdout
        more than the forget rows has an advantage beyond the holdout, but no knowledge.
        """
        if self.beyond_holdout is None or self.over_control.p > DOUBT:
            return 1.0
        return min(1.0, self.looks * self.beyond_holdout.p)

    @property
    def value(self) -> float:
        """The advantage beyond the holdout, or over the control where there is no holdout."""
        return (self.beyond_holdout or self.over_control).value

    @property
    def high(self) -> float:
        """Upper end of what may have been missed: both advantages must reach it."""
        beyond = self.beyond_holdout
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
        }


def difference(values: Values, others: Values | None = None) -> Estimate:
    """Mean over subjects, less the mean of other subjects where there are any.

    The interval is Student's (Welch's for two groups): unlike a percentile bootstrap it does not
    become too short with few subjects. A single subject has no interval.

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
    if error < 1e-12:
        return Estimate(value, value, value, 0.0 if value > 1e-9 else 1.0)
    freedom = sum(parts) ** 2 / sum(v**2 / (len(g) - 1) for v, g in zip(parts, groups, strict=True))
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(value, value - half, value + half, float(stats.t.sf(value / error, freedom)))


def less(first: Values, second: Values) -> dict[str, float]:
    """``first - second`` of every subject."""
    return {subject: first[subject] - second[subject] for subject in first}


def judge(found: Advantage, known: float | None) -> Finding:
    """Judge an advantage over the control, in nats a token.

    Args:
        found: of the attacked model.
        known: the value for the model before unlearning; None where it was not measured.

    Returns:
        ``traces``: p <= ``CONVICT`` and the value reaches a tenth of ``known``; ``none found``:
        p > ``DOUBT`` and at most a quarter of ``known`` may have gone unseen; else ``undecided``.
    """
    if found.beyond_holdout is None:
        return "undecided"
    whole = known if known is not None and known > 0 else None
    if found.p <= CONVICT and found.value >= (LEAST_SHARE * whole if whole else LEAST_NATS):
        return "traces"
    missed = MISSED_SHARE * whole if whole else LEAST_NATS
    return "none found" if found.p > DOUBT and found.high < missed else "undecided"


def at_least(chances: Sequence[float], k: int) -> float:
    """Chance that at least ``k`` of independent events happen: the Poisson binomial tail.

    Example:
        >>> round(at_least([0.5, 0.5], 1), 2)
        0.75
    """
    if k <= 0:
        return 1.0
    below = np.zeros(k)  # chance of exactly 0, ..., k - 1 so far
    below[0] = 1.0
    tail = 0.0
    for chance in chances:
        tail += float(below[-1]) * chance
        below[1:] = below[1:] * (1 - chance) + below[:-1] * chance
        below[0] *= 1 - chance
    return min(1.0, tail)


@dataclass(frozen=True)
class Leaks:
    """Rows that a model reveals word for word, and how well they could be guessed.

    Attributes:
        rows: ids of the rows that leak and that the control does not reveal itself.
        asked: how many rows were asked for.
        p: chance that a model without the data reveals as many by guessing.
    """

    rows: tuple[str, ...]
    asked: int
    p: float

    @classmethod
    def of(cls, leaked: Mapping[str, bool], guess: Mapping[str, float]) -> Leaks:
        """Count the leaks.

        Args:
            leaked: of each row asked for, whether the model reveals it and the control does not.
            guess: chance that a model without the data reveals it, in [0, 1].
        """
        rows = tuple(row for row, hit in leaked.items() if hit)
        chances = [min(1.0, guess[row]) for row in leaked]
        return cls(rows, len(leaked), at_least(chances, len(rows)))

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {"rows_leaked": len(self.rows), "rows": self.asked, "p": self.p}


def judge_leaks(found: Leaks) -> Finding:
    """Judge leaks: one secret that nobody can guess is a trace, a lucky guess is not.

    ``traces`` where guessing gives as many with a chance of at most ``CONVICT``, ``undecided`` at
    most ``DOUBT``, else ``none found``.
    """
    if not found.rows:
        return "none found"
    return "traces" if found.p <= CONVICT else "undecided" if found.p <= DOUBT else "none found"


def worst_of(findings: Iterable[Finding]) -> Finding:
    """Combine several tries: the first of traces, undecided, none found, no power, no control."""
    found = set(findings)
    order: tuple[Finding, ...] = ("traces", "undecided", "none found", "no power", "no control")
    return next(one for one in order if one in found)


def conclude(own: Finding, before: Finding | None, *, control: bool) -> Finding:
    """The finding of an attack after checks of its control and of its power.

    Args:
        own: what the evidence says of the attacked model.
        before: the same of the model before unlearning; None where it was not tried.
        control: whether there is a control. Without one nobody is convicted.
    """
    if not control:
        return "no control"
    if own == "traces" or before == "traces":
        return own
    return "no power"


def share_text(value: float, known: float | None) -> str:
    """An advantage as a share of what the model knew before, where that was measured."""
    return f", {value / known:.0%} of what it was before unlearning" if known and known > 0 else ""


CLAIMS: dict[Finding, str] = {
    "traces": "The claim that the data is gone does not hold: {how}.",
    "none found": "The claim that the data is gone stands against this attack: {how}.",
    "undecided": "Not enough data to say whether the claim that the data is gone holds: {how}.",
    "no power": "This attack says nothing about the claim that the data is gone: {how}.",
    "no control": "No control, cannot tell whether the claim that the data is gone holds: {how}.",
}
_FIXED = {
    "no power": "it does not find the data in the model before unlearning either, or was not tried "
    "on it (--base)",
    "no control": "without a model that never saw the data (--control), good guesses look like "
    "memory",
}


def claim(finding: Finding, how: Mapping[str, str]) -> str:
    """The last sentence of a verdict; ``how`` gives the reason for each finding."""
    reason = _FIXED.get(finding) or how.get(finding, "")
    return CLAIMS[finding].format(how=reason)
