"""Rules that turn measurements into findings.

Two kinds of evidence can convict a model, and both compare it with a control that never saw the
data: secrets that it reveals word for word (``judge_leaks``), and forget rows that it predicts
better than the control does, by more than on the holdout (``attack.advantage.judge``).

``told_elsewhere`` finds secrets in answers about other subjects. A model that answers every
question with the same number, or one person's question with another person's number, discloses
it; judged by single prompts, such answers look like errors or like a repeated guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergeforget.attack.advantage import CONVICT, DOUBT, MISSED_SHARE, OUTLIER, Advantage
from mergeforget.attack.result import Finding
from mergeforget.attack.variants import Variant
from mergeforget.data.schema import Row
from mergeforget.metrics._identifiers import identifier
from mergeforget.metrics._leaks import contained, leaked

ELSEWHERE = 0.0001  # significance level of secrets in answers about somebody else
GREEDY = 2.0  # factor by which greedy decoding emits a likely answer more often than sampling
BREAK = "\n------\n"  # between completions, so that no number continues in the next one


def at_least(chances: Sequence[float], k: int) -> float:
    """Return the probability of at least ``k`` independent events (Poisson binomial tail).

    Example:
        >>> round(at_least([0.5, 0.5], 1), 2)
        0.75
    """
    if k <= 0:
        return 1.0
    below = np.zeros(k)  # probability of exactly 0, ..., k - 1 events so far
    below[0] = 1.0
    tail = 0.0
    for chance in chances:
        tail += float(below[-1]) * chance
        below[1:] = below[1:] * (1 - chance) + below[:-1] * chance
        below[0] *= 1 - chance
    return min(1.0, tail)


@dataclass(frozen=True)
class Leaks:
    """Rows that a model reveals word for word, with a p-value for guessing.

    Attributes:
        rows: Ids of the rows that leak and that the control does not reveal.
        asked: Number of rows.
        p: Probability that a model without the data reveals as many by guessing.
        shared: Number of rows that the control reveals, too. They are not in ``rows``.
    """

    rows: tuple[str, ...]
    asked: int
    p: float
    shared: int = 0

    @classmethod
    def of(cls, leaked: Mapping[str, bool], guess: Mapping[str, float], shared: int = 0) -> Leaks:
        """Count the leaks.

        Args:
            leaked: For each row, whether the model reveals it and the control does not.
            guess: Probability that a model without the data reveals it, in [0, 1].
        """
        rows = tuple(row for row, hit in leaked.items() if hit)
        chances = [min(1.0, guess[row]) for row in leaked]
        return cls(rows, len(leaked), at_least(chances, len(rows)), shared)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        values: dict[str, object] = {"rows_leaked": len(self.rows), "rows": self.asked, "p": self.p}
        return values | {"rows_shared": self.shared}

    @property
    def hidden(self) -> bool:
        """Whether the control reveals too many of the leaked rows to clear a model."""
        return self.shared > MISSED_SHARE * self.asked


def judge_leaks(leaks: Leaks) -> Finding:
    """Judge leaks by the probability of guessing as many.

    ``traces`` if the p-value is at most ``CONVICT``, ``undecided`` if it is at most ``DOUBT`` or if
    model and control both reveal more than ``MISSED_SHARE`` of the rows, else ``none found``. A
    single secret that cannot be guessed is enough for ``traces``.
    """
    if leaks.rows and leaks.p <= CONVICT:
        return "traces"
    doubtful = leaks.hidden or (leaks.rows and leaks.p <= DOUBT)
    return "undecided" if doubtful else "none found"


def worst_of(findings: Iterable[Finding]) -> Finding:
    """Combine findings: the first of traces, undecided, none found, no power, no control."""
    names = set(findings)
    order: tuple[Finding, ...] = ("traces", "undecided", "none found", "no power", "no control")
    return next(one for one in order if one in names)


def conclude(own: Finding, before: Finding | None, *, control: bool) -> Finding:
    """Return the finding of an attack, after checking its control and its power.

    Args:
        own: Finding for the attacked model.
        before: Finding for the model before unlearning; None if it was not attacked.
        control: Whether there is a control. Without one, no model is convicted.
    """
    if not control:
        return "no control"
    if own == "traces" or before == "traces":
        return own
    return "no power"


def doubt_of(evidence: Iterable[Advantage], leaks: Iterable[Leaks] = ()) -> str:
    """Return why an attack is undecided."""
    for one in leaks:
        if one.hidden:
            return (
                f"the control reveals {one.shared} of the {one.asked} rows as well, so they cannot "
                "be judged; use a --control that never saw them"
            )
    advantages = list(evidence)
    outliers = [one.outlier for one in advantages
                if one.outlier and one.conditions * one.outlier.p <= OUTLIER]  # fmt: skip
    if outliers:
        outlier = min(outliers, key=lambda one: one.p)
        more = f" and {outlier.count - 1} more" if outlier.count > 1 else ""
        return (
            f"it predicts {outlier.subject}{more} far better than the others, by "
            f"{outlier.value:.2f} nats per token or more (p = {outlier.p:.2g})"
        )
    if all(one.comparable for one in advantages):
        if any(one.damaged(None) and one.over_control.p > DOUBT for one in advantages):
            return (
                "it predicts the holdout worse than the control does, so it may be damaged and "
                "still know the forget rows; more people would narrow it"
            )
        return "the result is too uncertain, more people would narrow it"
    return (
        "the holdout is text of another kind than the forget rows, since the control predicts one "
        "clearly better than the other; give --holdout rows like them"
    )


def share_text(value: float, known: float | None) -> str:
    """Return an advantage as a share of that before unlearning; empty if it was not measured."""
    return f", {value / known:.0%} of what it was before unlearning" if known and known > 0 else ""


CLAIMS: dict[Finding, str] = {
    "traces": "The claim that the data is gone does not hold: {how}.",
    "none found": "This attack does not refute the claim that the data is gone: {how}.",
    "undecided": "Not enough data to say whether the claim that the data is gone holds: {how}.",
    "no power": "This attack has no power to test the claim that the data is gone: {how}.",
    "no control": "Without a control, the claim that the data is gone cannot be tested: {how}.",
}
_FIXED = {
    "no power": "it does not find the data in the model before unlearning either, or was not run "
    "on that model (--base)",
    "no control": "without a model that never saw the data (--control), guesses cannot be told "
    "from memory",
}


def claim(finding: Finding, how: Mapping[str, str]) -> str:
    """Return the last sentence of a verdict; ``how`` has the reason for each finding."""
    reason = _FIXED.get(finding) or how.get(finding, "")
    return CLAIMS[finding].format(how=reason)


def told_elsewhere(
    asked: Sequence[Variant],
    texts: Sequence[Sequence[str]],
    control: Sequence[Sequence[str]],
    guess: Sequence[float],
    *,
    known: Sequence[Row] = (),
    draws: int = 1,
) -> tuple[Leaks, list[dict[str, Any]]]:
    """Return the identifying secrets that a model reveals in answers about other subjects.

    A model without the data does not know to whom a secret belongs. It is as likely to reveal it
    after any prompt as after those of the subject that it belongs to, so the chance of a guess is
    the mean of these, times the number of other completions.

    Args:
        asked: Prompts, one by one with ``texts``, ``control`` and ``guess``.
        texts, control: Completions of the model and of the control.
        guess: Chance that a model without the data reveals the secret of the prompt.
        known: Rows of other splits; a secret that one of them contains is not counted.
        draws: Number of completions per prompt.

    Returns:
        The leaks, with one row per distinct secret, and every leak as an example.
    """
    elsewhere = BREAK.join(row.document for row in known)
    mine, theirs = _by_subject(asked, texts), _by_subject(asked, control)
    prompts = _by_subject(asked, [[v.text] for v in asked])
    leaky: dict[str, bool] = {}
    chances: dict[str, float] = {}
    examples: list[dict[str, Any]] = []
    for secret, places in _secrets(asked).items():
        own = {asked[i].row.subject for i in places}
        key = identifier(secret)
        if _contains(secret, key, elsewhere) or _any(secret, key, theirs, set()):
            continue
        row = asked[places[0]].row.id
        others = sum(v.row.subject not in own for v in asked) * draws
        chances[row] = min(1.0, others * sum(guess[i] for i in places) / len(places))
        owners = [s for s in _any(secret, key, mine, own) if not contained(secret, prompts[s])]
        leaky[row] = bool(owners)
        examples += [
            {"kind": "in an answer about somebody else", "row": row, "person": sorted(own)[0],
             "prompt": asked[i].text, "secret": secret, "completion": text, "control": False}
            for i in range(len(asked)) if asked[i].row.subject in owners[:1]
            for text in texts[i] if leaked(secret, text)
        ][:1]  # fmt: skip
    return Leaks.of(leaky, chances), examples


def _secrets(asked: Sequence[Variant]) -> dict[str, list[int]]:
    """Return the prompts that ask for each whole identifying secret."""
    places: dict[str, list[int]] = {}
    for i, v in enumerate(asked):
        if not v.start and identifier(v.secret):
            places.setdefault(v.secret, []).append(i)
    return places


def _by_subject(asked: Sequence[Variant], texts: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return all texts of each subject as one."""
    by_subject: dict[str, list[str]] = {}
    for v, samples in zip(asked, texts, strict=True):
        by_subject.setdefault(v.row.subject, []).extend(samples)
    return {subject: BREAK.join(dict.fromkeys(samples)) for subject, samples in by_subject.items()}


def _any(secret: str, key: str, texts: dict[str, str], own: set[str]) -> list[str]:
    """Return the subjects, other than its own, whose texts contain a secret."""
    return [s for s, text in texts.items() if s not in own and _contains(secret, key, text)]


def _contains(secret: str, key: str, text: str) -> bool:
    near = key in (re.sub(r"\D", "", text) if key.isdigit() else text.casefold())
    return near and leaked(secret, text)
