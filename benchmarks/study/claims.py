"""Judge whether the measured numbers support the same claims as the published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from benchmarks.study.cells import DIVERGED, Interval, Results, StudyCell, cells_of, published
from benchmarks.study.definition import Claim, Table

Figures = Mapping[str, float | None]  # row label -> figure


@dataclass(frozen=True)
class ClaimResult:
    """A claim judged on one set of values.

    Attributes:
        holds: None if a value is missing.
        detail: The values that decide, or the reason why there is no answer, in words.
        rows: Labels of the row and of those that it was compared with, the best of them first.
    """

    holds: bool | None
    detail: str = ""
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim judged on the published values and on the measured ones.

    Attributes:
        settled: Whether all values within the measured intervals give the same answer; None if a
            value has no interval.
        intervals: The same in words.
    """

    claim: Claim
    published: ClaimResult
    here: ClaimResult
    settled: bool | None = None
    intervals: str = ""

    @property
    def word(self) -> str:
        """The verdict in one word or two."""
        if self.here.holds is None:
            return "Diverged" if self.here.detail else "Not measured yet"
        if self.published.holds is None:
            return "Holds" if self.here.holds else "Does not hold"
        return "Replicates" if self.here.holds == self.published.holds else "Does not replicate"

    @property
    def sentence(self) -> str:
        """``**Replicates.** The merge is .... Here: .... Published: ....``"""
        told = [("Here", self.here), ("Published", self.published)]
        details = "".join(f" {who}: {f.detail}." for who, f in told if f.detail)
        certainty = f" {self.intervals}." if self.intervals else ""
        return f"**{self.word}.** {self.claim.text}.{details}{certainty}"


def verdicts(table: Table, results: Results) -> list[Verdict]:
    """Judge every claim of a table."""
    cells = {row.label: cells_of(table, row, results) for row in table.rows}
    source = published(table)
    found = []
    for claim in table.claims:
        column = {label: every[claim.column] for label, every in cells.items()}
        here = {label: cell.whole for label, cell in column.items()}
        finding = _hindered(claim, column) or judge(claim, here)
        intervals = {label: cell.interval for label, cell in column.items()}
        certainty = settled(claim, finding, intervals)
        found.append(Verdict(claim, judge(claim, source[claim.column]), finding, *certainty))
    return found


def _hindered(claim: Claim, column: Mapping[str, StudyCell]) -> ClaimResult | None:
    """Return why a claim cannot be judged: a row was not run, or diverged. None if it can be."""
    if claim.kind == "order":
        return None  # it reports the missing rows itself
    rivals = [] if claim.kind == "within" else claim.of or [n for n in column if n != claim.row]
    if any(column[name].waiting for name in (claim.row, *rivals)):
        return ClaimResult(None)
    counted = [claim.row, *(claim.of if rivals else [])]  # any of the other rows may have diverged
    gone = [name for name in counted if column[name].why == DIVERGED]
    return ClaimResult(None, f"{', '.join(gone)} diverged") if gone else None


def settled(
    claim: Claim, finding: ClaimResult, intervals: Mapping[str, Interval | None]
) -> tuple[bool | None, str]:
    """Return whether the intervals of the deciding rows allow one answer only, and the reason."""
    known = {row: span for row in finding.rows if (span := intervals.get(row)) is not None}
    row = claim.row
    if row not in known or finding.holds is None:
        return None, ""
    if claim.kind == "within":
        (low, high), bottom = known[row], _low(claim)
        sure = high < bottom or claim.high < low or (bottom <= low and high <= claim.high)
        return sure, _certainty(sure, [row], known)
    rivals = [name for name in finding.rows[1:] if name in known]
    missing = len(rivals) < len(finding.rows) - 1
    if finding.holds:
        near = [name for name in rivals if not _beats(claim, known[row], known[name])]
        if missing and not near:
            return None, ""
        return not near, _certainty(not near, [row, *(near or rivals[:1])], known)
    past = [name for name in rivals if _beats(claim, known[name], known[row])]
    if missing and not past:
        return None, ""
    return bool(past), _certainty(bool(past), [row, *(past or rivals)[:1]], known)


def _beats(claim: Claim, one: Interval, other: Interval) -> bool:
    """Return whether every value in one interval is better than every value in the other."""
    return _goodnesses(claim, one)[0] > _goodnesses(claim, other)[1]


def _certainty(sure: bool, rows: Sequence[str], known: Mapping[str, Interval]) -> str:
    shown = ", ".join(f"{row} {known[row][0]:.3f} to {known[row][1]:.3f}" for row in rows)
    if len(rows) == 1:
        return f"The 95 % interval {'decides it' if sure else 'leaves it open'}: {shown}"
    return f"The 95 % intervals {'decide it' if sure else 'leave it open'}: {shown}"


def _goodnesses(claim: Claim, span: Interval) -> Interval:
    """Return the range of ``_goodness`` over an interval."""
    ends = [_goodness(claim, x) for x in span]
    if claim.kind == "nearest" and span[0] <= claim.target <= span[1]:
        ends.append(0.0)
    return min(ends), max(ends)


def judge(claim: Claim, figures: Figures) -> ClaimResult:
    """Judge whether a claim holds for these values."""
    if claim.kind == "order":
        return _order(claim, figures)
    value = figures.get(claim.row)
    if value is None:
        return ClaimResult(None)
    if claim.kind == "within":
        away = max(_low(claim) - value, value - claim.high, 0.0)
        span = (
            f"{claim.high:g} or less" if claim.low is None else f"{claim.low:g} to {claim.high:g}"
        )
        if away:
            told = f"{value:.3f} is outside {span}, by {away:.3f}"
            return ClaimResult(False, told, (claim.row,))
        return ClaimResult(True, f"{value:.3f} is within {span}", (claim.row,))
    names = claim.of or [name for name in figures if name != claim.row]
    others = {name: v for name in names if (v := figures.get(name)) is not None}
    if len(others) < (len(names) if claim.of else 1):
        return ClaimResult(None)
    return _extreme(claim, value, others)


def _extreme(claim: Claim, value: float, others: Mapping[str, float]) -> ClaimResult:
    """Compare the row with its closest competitor, or with the one that exceeds it most."""
    ordered = sorted(others, key=lambda name: -_goodness(claim, others[name]))
    rival = ordered[0]
    gap = _goodness(claim, value) - _goodness(claim, others[rival])
    by = f"ahead by {gap:.3f}" if gap > 0 else f"behind by {-gap:.3f}" if gap else "a tie"
    told = f"{value:.3f} compared with {others[rival]:.3f} ({rival}), {by}"
    return ClaimResult(gap > 0, told, (claim.row, *ordered))


def _low(claim: Claim) -> float:
    return -math.inf if claim.low is None else claim.low


def _goodness(claim: Claim, x: float) -> float:
    return {"largest": x, "smallest": -x, "nearest": -abs(x - claim.target)}[claim.kind]


def _order(claim: Claim, figures: Figures) -> ClaimResult:
    """Count the pairs of rows in the claimed order; rows without a value are excluded."""
    known = [(name, v) for name in claim.of if (v := figures.get(name)) is not None]
    pairs = list(combinations(known, 2))
    if not pairs:
        return ClaimResult(None)
    kept = sum(a > b for (_, a), (_, b) in pairs)
    shown = " > ".join(name for name, _ in sorted(known, key=lambda x: -x[1]))
    missing = len(claim.of) - len(known)
    less = f"; {missing} rows are not measured" if missing else ""
    whole = None if missing else kept == len(pairs)
    return ClaimResult(whole, f"{kept} of {len(pairs)} pairs have this order ({shown}{less})")
