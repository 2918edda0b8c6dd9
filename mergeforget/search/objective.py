"""Parse the objective of a search, and rank candidates by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergeforget.errors import UnknownNameError, UsageError
from mergeforget.evaluate.verdict_figures import RARE, answered, at_least
from mergeforget.score import Score, find, harmonic_mean, mia_score

FIGURES = {
    "mia": "1 - 2 |AUC - 0.5| of membership inference: 1 if members cannot be told apart",
    "mia_level": "the same for the NLL of each row minus that of its twins under the base, if a "
    "training with `until` measured these, else `mia`",
    "retain": "share of the retain questions answered as before, by the best metric there is",
    "forget": "1 - the same for the forget questions",
    "aggregate": "the benchmark's own aggregate",
    "task_aggregate": "harmonic mean of the benchmark's terms",
    "mmlu": "share of MMLU's questions answered",
}
LEAKS = {  # figures with an upper bound, measured for candidates that are measured in full
    "revealed": "share of the forget answers revealed to the questions of the data; 0 if chance "
    "explains them",
    "leak4bit": "share of the forget answers predicted word for word with weights in 4 bits",
    "relearn": "the same after a few steps on retain rows and a quarter of the forget subjects",
}
MEMBERSHIP = ("mia", "mia_level", "aggregate")  # figures that need non-members
ATTACKED = ("leak4bit", "relearn")  # leaks that need more than an evaluation
# metrics of remaining knowledge, the most informative first
KNOWING = ("knowledge", "exact_match", "greedy_match", "regurgitation", "exact_memorisation")
ROUNDING = 1e-12  # equal sums in a different order must tie
HELP = (
    "Write `mia`, `aggregate`, a weighted sum such as `0.7*mia + 0.3*retain`, or add a floor: "
    "`mia if retain >= 95%` (percent: of the model before; a plain number: itself). Floors on "
    "leaks are bounds from above: `mia if revealed <= 0 and leak4bit <= 5% and relearn <= 5%`."
)
NAME = re.compile(r"(?:(?P<weight>[0-9.]+)\s*\*\s*)?(?P<name>[a-z_][a-z_0-9]*)")
FLOOR = re.compile(r"(?P<name>[a-z_0-9]+)\s*(?P<sign>>=|<=)\s*(?P<value>[0-9.]+)\s*(?P<percent>%?)")


class Floor(NamedTuple):
    """Minimum of a figure: ``value``, times the base's figure if ``relative``.

    For a figure of ``LEAKS`` it is the maximum.
    """

    name: str
    value: float
    relative: bool

    def __str__(self) -> str:
        share = f"{100 * self.value:g}%" if self.relative else f"{self.value:g}"
        return f"{self.name} {'<=' if self.name in LEAKS else '>='} {share}"


class MissedFloor(NamedTuple):
    """A floor that was not reached, with the value ``found`` and the value ``wanted``."""

    floor: Floor
    found: float
    wanted: float


class Rank(NamedTuple):
    """Sort key of candidates; larger is better.

    Attributes:
        shortfall: Sum of the differences to missed floors: 0 if all are reached, else negative.
        value: Value of the objective.
        retain: Breaks ties, followed by ``forget``.
    """

    shortfall: float
    value: float
    retain: float
    forget: float


@dataclass(frozen=True)
class Objective:
    """A weighted sum of figures, and floors that take precedence."""

    text: str
    terms: tuple[tuple[str, float], ...]
    floors: tuple[Floor, ...] = ()

    @property
    def figures(self) -> set[str]:
        """Names of the figures that the objective reads."""
        return {name for name, _ in self.terms} | {floor.name for floor in self.floors}

    def rank(
        self,
        scores: Sequence[Score],
        base: Sequence[Score],
        part: str,
        read: Callable[[str, Sequence[Score], str], float | None] | None = None,
    ) -> Rank:
        """Rank a candidate.

        Args:
            scores: Scores of the candidate.
            base: Scores of the base model, for floors in percent.
            part: ``choose``, ``report`` or ``all``.
            read: Computes a figure from scores; ``estimate`` for proxy scores.

        Raises:
            UsageError: A figure of the objective was not measured.
        """
        read = read or figure

        def known(name: str, of: Sequence[Score]) -> float:
            return self._measured(name, read(name, of, part))

        value = sum(weight * known(name, scores) for name, weight in self.terms)
        shortfall = -sum(abs(m.found - m.wanted) for m in self.missed(scores, base, part, read))
        # 12 digits: equal sums in a different order must tie
        retain, forget = (figure(name, scores, part) or 0.0 for name in ("retain", "forget"))
        return Rank(round(shortfall, 12), round(value, 12), retain, forget)

    def missed(
        self,
        scores: Sequence[Score],
        base: Sequence[Score],
        part: str,
        read: Callable[[str, Sequence[Score], str], float | None] | None = None,
    ) -> list[MissedFloor]:
        """Return the floors that a candidate misses; arguments as in ``rank``."""
        read = read or figure
        failures = []
        for floor in self.floors:
            reached = self._measured(floor.name, read(floor.name, scores, part))
            before = (
                self._measured(floor.name, read(floor.name, base, part)) if floor.relative else 1
            )
            required = floor.value * before
            short = reached - required if floor.name in LEAKS else required - reached
            if short > ROUNDING:
                failures.append(MissedFloor(floor, reached, required))
        return failures

    def _measured(self, name: str, value: float | None) -> float:
        if value is None:
            reasons = dict.fromkeys(("mmlu", *LEAKS), " Measure again with --again.")
            raise UsageError(
                f"The objective {self.text!r} reads {name!r}, which was not measured."
                f"{reasons.get(name, '')}"
            )
        return value


def parse_objective(text: str) -> Objective:
    """Parse an objective such as ``0.7*mia + 0.3*retain if retain >= 95%``.

    Raises:
        UsageError: The text is not an objective; the message shows the syntax.
    """
    weighted_sum, _, condition = text.strip().partition(" if ")
    terms = []
    for part in weighted_sum.split("+"):
        match = NAME.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"Objective {text!r}: {part.strip()!r} is not a term. {HELP}")
        if match["name"] in LEAKS:
            raise UsageError(f"{match['name']!r} is a floor, not a term of the sum. {HELP}")
        terms.append((_known(match["name"]), _number(match["weight"] or "1", text)))
    floors = []
    for part in condition.split(" and ") if condition else []:
        match = FLOOR.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"Objective {text!r}: {part.strip()!r} is not a floor. {HELP}")
        relative = bool(match["percent"])
        value = _number(match["value"], text) / (100 if relative else 1)
        name = match["name"] if match["name"] in LEAKS else _known(match["name"])
        if (match["sign"] == "<=") is not (name in LEAKS):
            raise UsageError(f"Objective {text!r}: {part.strip()!r} is not a floor. {HELP}")
        floors.append(Floor(name, value, relative))
    return Objective(text.strip(), tuple(terms), tuple(floors))


def figure(name: str, scores: Sequence[Score], part: str) -> float | None:
    """Return one of FIGURES, larger is better; None if it was not measured."""
    if name == "mia":
        auc = find(scores, "mia_auc", "mia", part=part)
        return None if auc is None else mia_score(auc.value)
    if name == "mia_level":
        auc = compared_auc(scores, part)
        return None if auc is None else mia_score(auc.value)
    if name == "retain":
        return known_share(scores, "retain", part)
    if name == "forget":
        known = known_share(scores, "forget", part)
        return None if known is None else 1 - known
    where = "mmlu" if name == "mmlu" else "forget" if name in LEAKS else "all"
    if name == "revealed":
        return revealed(scores, part)
    score = find(scores, name, where, part=part)
    return None if score is None else score.value


def revealed(scores: Sequence[Score], part: str) -> float | None:
    """Return the share of revealed forget answers, as in a verdict.

    It is 0 if chance explains the revealed answers, or if no answer can be counted, for example
    because each is in its own prompt. None if no forget row was answered.
    """
    rate = find(scores, "leak_rate", "forget", part=part)
    if rate is None:
        return 0.0 if answered(scores, [part]) else None
    by_chance = at_least(round(rate.value * rate.n), rate.n, rate.chance or 0.0) >= RARE
    return 0.0 if by_chance else rate.value


def compared_auc(scores: Sequence[Score], part: str) -> Score | None:
    """Return the MIA AUC of NLL minus the twins' NLL if it was measured, else of NLL."""
    level = find(scores, "mia_auc_level", "mia", part=part)
    return find(scores, "mia_auc", "mia", part=part) if level is None else level


def estimate(name: str, scores: Sequence[Score], part: str) -> float | None:
    """Estimate a figure from proxy scores; aggregates use the terms that are known.

    Suitable for selecting finalists only, not for reporting.
    """
    value = figure(name, scores, part)
    if value is None and name in LEAKS:  # a proxy evaluation measures exact answers only
        exact = find(scores, "greedy_match", "forget", part=part)
        return 0.0 if exact is None or name != "revealed" else exact.value
    if value is not None or name not in ("aggregate", "task_aggregate", "mmlu"):
        return value
    retain, forget, mia = (figure(n, scores, part) for n in ("retain", "forget", "mia"))
    if retain is None or forget is None or mia is None:
        return None
    both = harmonic_mean([retain, forget])
    return {"mmlu": retain, "task_aggregate": both, "aggregate": (both + mia) / 2}[name]


def known_share(scores: Sequence[Score], split: str, part: str) -> float | None:
    """Return the share of a split that the model still knows, by the most informative metric."""
    score = known_score(scores, split, part)
    return None if score is None else score.value


def known_score(scores: Sequence[Score], split: str, part: str) -> Score | None:
    """Return the score that ``known_share`` uses."""
    scores_found = (find(scores, metric, split, part=part) for metric in KNOWING)
    return next((score for score in scores_found if score is not None), None)


def _known(name: str) -> str:
    if name not in FIGURES:
        raise UnknownNameError("figure", name, [*FIGURES, *LEAKS])
    return name


def _number(text: str, objective: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        message = f"The objective {objective!r}: {text!r} is not a number. {HELP}"
        raise UsageError(message) from error
