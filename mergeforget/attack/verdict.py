"""From figures to a finding: one rule for every attack that compares losses, stated once.

Rows of one document are not independent, so intervals come from drawing whole documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mergeforget.attack.result import Finding

LEAST_SHARE = 0.1  # of what the model before unlearning knew: less is not called a trace
LEAST_NATS = 0.1  # a token, where it is not known what the model knew before
DRAWS = 1000

Losses = Mapping[str, float]  # document -> mean NLL of its answers, in nats a token


@dataclass(frozen=True)
class Estimate:
    """A mean over documents with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return dict(vars(self))


def difference(values: Losses, others: Losses | None = None, *, seed: int = 0) -> Estimate:
    """The mean of a value of each document, less the mean of the others' where there are any.

    The interval is a percentile bootstrap; documents, and those of the others, are drawn apart.
    """
    draw = np.random.default_rng(seed)
    groups = [np.fromiter(group.values(), float) for group in (values, others) if group]
    means, drawn = [], []
    for group in groups:
        places = draw.integers(0, len(group), (DRAWS, len(group)))
        means.append(float(group.mean()))
        drawn.append(group[places].mean(axis=1))
    value = means[0] - (means[1] if len(means) > 1 else 0.0)
    low, high = np.percentile(drawn[0] - (drawn[1] if len(drawn) > 1 else 0.0), (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def less(first: Losses, second: Losses) -> dict[str, float]:
    """``first - second`` of every document."""
    return {document: first[document] - second[document] for document in first}


def judge(found: Estimate, known: float | None) -> Finding:
    """What an advantage of the attacked model, in nats a token, says.

    Args:
        found: positive where the model predicts the forgotten text better than it should.
        known: the same for the model before unlearning; None where that is not at hand.

    Returns:
        ``traces``: the interval lies above 0 and the estimate reaches a tenth of ``known``;
        ``none found``: the interval's upper end does not reach that tenth; else ``undecided``.
    """
    least = LEAST_SHARE * known if known is not None and known > 0 else LEAST_NATS
    if found.low > 0 and found.value >= least:
        return "traces"
    return "none found" if found.high < least else "undecided"


def worst_of(findings: Iterable[Finding]) -> Finding:
    """Of several tries: traces where one finds any, none found where every one finds none."""
    found = set(findings)
    if "traces" in found:
        return "traces"
    return "none found" if found == {"none found"} else "undecided"


def share_text(found: Estimate, known: float | None) -> str:
    """The advantage as a part of what was known before, where that is at hand."""
    if known is None or known <= 0:
        return ""
    return f", {found.value / known:.0%} of what the model before unlearning knew"


CLAIMS: dict[Finding, str] = {
    "traces": "The claim that the data is gone does not hold: {how}.",
    "none found": "The claim that the data is gone stands against this attack: {how}.",
    "undecided": "Nothing can be said for or against the claim that the data is gone: {how}.",
}


def claim(finding: Finding, how: str) -> str:
    """The last sentence of a verdict."""
    return CLAIMS[finding].format(how=how)
