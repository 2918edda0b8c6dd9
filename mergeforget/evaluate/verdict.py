"""Decides whether a model has forgotten: FORGOTTEN, NOT FORGOTTEN or NOT ENOUGH DATA.

One rule for the search, the report and ``mergeforget unlearn``; ``docs/evidence.md`` states it in
words, with its error rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mergeforget.score import Score, find

State = Literal["FORGOTTEN", "NOT FORGOTTEN", "NOT ENOUGH DATA"]
MARGIN = 0.2  # distance of an AUC from 0.5 from which members are told apart
RARE = 0.01  # probability of so many leaks by chance below which they count as memory
MOST = 10_000  # people; more are not worth naming
NEEDED = ("prompts", "relearn")  # attacks without which no model is cleared
LEAKS = ("leak_rate", "knowledge", "exact_match")  # what counts answers, the widest first


@dataclass(frozen=True)
class ForgettingVerdict:
    """What is concluded about one model.

    Attributes:
        state: FORGOTTEN, NOT FORGOTTEN, or NOT ENOUGH DATA where neither is shown.
        reasons: Why, one sentence each.
        leaks: Number of forget answers that came out, of ``asked``.
        auc: MIA AUC and its 95 % interval, where there are non-members.
        more_people: About how many more people the AUC needs; None where that does not help.
        over_forgotten: Whether the forget set is identifiable by its high loss: its AUC is surely
            far below 0.5. That is no memory of the content, but the model is not balanced.
        uncertain: What remains uncertain, one sentence each.
    """

    state: State
    reasons: list[str]
    leaks: int = 0
    asked: int = 0
    auc: float | None = None
    interval: tuple[float, float] | None = None
    more_people: int | None = None
    over_forgotten: bool = False
    uncertain: list[str] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether the model has forgotten, and its AUC is surely near 0.5 from both sides."""
        near = self.interval is not None and self.interval[0] >= 0.5 - MARGIN
        return self.state == "FORGOTTEN" and near

    @property
    def sentence(self) -> str:
        """``NOT ENOUGH DATA: ...``"""
        return f"{self.state}: {' '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"balanced": self.balanced}


def judge(
    scores: Sequence[Score],
    *,
    findings: Mapping[str, str] | None = None,
    control: Sequence[Score] = (),
) -> ForgettingVerdict:
    """Decide whether a model has forgotten.

    - NOT FORGOTTEN: forget answers come out more often than by chance, an attack found traces, or
      the whole interval of the MIA AUC is above ``0.5 + MARGIN`` (and above the control's).
    - FORGOTTEN: none of these, every forget row was asked, the whole interval of the AUC is below
      ``0.5 + MARGIN``, and, where ``findings`` are given, the attacks of ``NEEDED`` found none
      (with the power to find the data in the base), and no attack was undecided.
    - NOT ENOUGH DATA: anything else.

    Args:
        scores: Scores of the model. Leaks are counted on all rows; the AUC is that of the report
            split where the model was selected by a search.
        findings: Finding of each attack on the model: ``traces``, ``none found``, ``undecided``,
            ``no power`` or ``no control``. None leaves attacks out of the verdict, as a search
            must; an empty mapping says that no attack was run.
        control: Scores of a model that never saw the data.

    >>> leak = Score("leak_rate", "forget", 0.5, "lower", 10, chance=0.0)
    >>> print(judge([leak]).sentence)
    NOT FORGOTTEN: 5 of 10 forget answers still come out.
    """
    guilty, doubts, uncertain = [], [], []
    leaks, asked, chance = leaks_of(scores)
    allowed = max(chance, _rate(control))
    if not asked:
        doubts.append("No forget row was asked.")
    elif leaks and at_least(leaks, asked, allowed) < RARE:
        guilty.append(f"{leaks} of {asked} forget answers still come out.")
    elif leaks:
        uncertain.append(f"{leaks} of {asked} forget answers come out, no more than by chance.")
    area = auc_score(scores)
    interval = None if area is None else auc_interval(area)
    more, over = None, False
    if area is None or interval is None:
        doubts.append("Membership was not measured: there are no rows that no training saw.")
    else:
        told = f"MIA AUC {area.value:.2f}, 95 % CI {interval[0]:.2f} to {interval[1]:.2f}"
        top = 0.5 + MARGIN
        others = auc_score(control)
        if interval[0] > top and (others is None or interval[0] > auc_interval(others)[1]):
            guilty.append(f"Forget documents are told from unseen ones ({told}).")
        elif interval[1] > top:
            more = more_people(area, interval)
            people = "" if more is None else f" About {more} more people would tell."
            doubts.append(f"Membership cannot be decided ({told}; wanted: below {top}).{people}")
        over = interval[1] < 0.5 - MARGIN
        if over:
            uncertain.append(f"The forget set is identifiable by its high loss ({told}).")
        elif interval[0] < 0.5 - MARGIN:
            more = more or more_people(area, interval)
            uncertain.append(f"Over-forgetting cannot be excluded ({told}).")
    if findings is not None:
        _attacks(findings, guilty, doubts, uncertain)
    state: State = "FORGOTTEN"
    if guilty or doubts:
        state = "NOT FORGOTTEN" if guilty else "NOT ENOUGH DATA"
    reasons = guilty or doubts or [_cleared(leaks, asked, area, interval)]
    left = uncertain + (doubts if guilty else [])
    value = None if area is None else area.value
    return ForgettingVerdict(state, reasons, leaks, asked, value, interval, more, over, left)


def leaks_of(scores: Sequence[Score]) -> tuple[int, int, float]:
    """Return leaked and asked forget rows over the whole data, and the leak rate by chance."""
    for metric in LEAKS:
        parts = [s for p in ("all", "choose", "report") if (s := find(scores, metric, "forget",
                 part=p))]  # fmt: skip
        whole = [s for s in parts if s.part == "all"] or parts
        if whole:
            leaks = sum(round(s.value * s.n) for s in whole)
            return leaks, sum(s.n for s in whole), max(s.chance or 0.0 for s in whole)
    return 0, 0, 0.0


def auc_score(scores: Sequence[Score]) -> Score | None:
    """Return the MIA AUC: on the report split where there is one, else on all documents."""
    found = (find(scores, "mia_auc", "mia", part=part) for part in ("report", "all"))
    return next((score for score in found if score is not None), None)


def auc_interval(score: Score) -> tuple[float, float]:
    """Return the 95 % interval of an AUC; for a score without one, that of ``n`` documents."""
    if score.interval is not None:
        return score.interval
    from mergeforget.metrics._statistics import auc_deviation

    half = max(1.0, score.n / 2)
    reach = 1.96 * float(auc_deviation(min(max(score.value, 0.02), 0.98), half, half))
    return max(0.0, score.value - reach), min(1.0, score.value + reach)


def more_people(score: Score, interval: tuple[float, float]) -> int | None:
    """Return about how many more people decide the AUC; None where no realistic number does.

    The width of an interval falls with the square root of the number of people.
    """
    apart = abs(score.value - 0.5)
    reach = max(interval[1] - score.value, score.value - interval[0])
    wanted = abs(MARGIN - apart)
    people = score.subjects or score.n
    if wanted < 1e-9 or not people:
        return None
    needed = math.ceil(people * (reach / wanted) ** 2) - people
    return max(1, needed) if needed <= MOST else None


def at_least(leaks: int, asked: int, chance: float) -> float:
    """Return the probability of at least so many leaks by chance."""
    if chance <= 0:
        return 0.0 if leaks else 1.0
    terms = (math.comb(asked, k) * chance**k * (1 - chance) ** (asked - k) for k in range(leaks))
    return max(0.0, 1.0 - sum(terms))


def _rate(scores: Sequence[Score]) -> float:
    leaks, asked, _ = leaks_of(scores)
    return leaks / asked if asked else 0.0


def _cleared(
    leaks: int, asked: int, area: Score | None, interval: tuple[float, float] | None
) -> str:
    text = f"{leaks} of {asked} forget answers come out"
    if area is None or interval is None:
        return text + "."
    low, high = interval
    return f"{text}, and the MIA AUC is {area.value:.2f} (95 % CI {low:.2f} to {high:.2f})."


def _attacks(
    findings: Mapping[str, str], guilty: list[str], doubts: list[str], uncertain: list[str]
) -> None:
    """Add what the attacks say to the lists."""
    by = {
        finding: [name for name, found in findings.items() if found == finding]
        for finding in ("traces", "none found", "undecided", "no power", "no control")
    }
    if by["traces"]:
        guilty.append(f"Attacks bring traces of the data back: {', '.join(by['traces'])}.")
    if not findings:
        doubts.append("No attack was run.")
    elif missing := [n for n in NEEDED if findings.get(n) not in ("none found", "traces")]:
        doubts.append(f"A verdict needs these attacks to be decided: {', '.join(missing)}.")
    if others := [name for name in by["undecided"] if name not in NEEDED]:
        doubts.append(f"Undecided attacks: {', '.join(others)}.")
    if by["no power"]:
        names = ", ".join(by["no power"])
        uncertain.append(f"No power, since they miss the data in the original model: {names}.")
    if by["no control"]:
        names = ", ".join(by["no control"])
        uncertain.append(f"Not judged without a model that never saw the data: {names}.")
