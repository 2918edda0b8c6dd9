"""Scores by the density of the merge, with intervals and the scores of base, over and under."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mergeforget.analysis.evidence import (
    MissingError,
    read_candidates,
    read_chosen,
    run_scores,
)
from mergeforget.candidate import Candidate
from mergeforget.run import ANCHORS, Run
from mergeforget.score import Score

ORDER = (
    "mia_auc", "mia_score", "regurgitation", "knowledge", "exact_match", "nll",
    "task_aggregate", "mmlu", "aggregate",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One candidate's score.

    Attributes:
        density: in (0, 1].
        interval: 95 % confidence interval, or None.
    """

    model: str
    density: float
    value: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Curve:
    """One score of all candidates that differ only in the density.

    Attributes:
        family: Method, space and weights, for example ``ties factors``.
        part: The split: ``choose`` (selection split), ``report``, or ``all``.
        points: Sorted by density.
    """

    metric: str
    split: str
    task: str
    part: str
    family: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Balance:
    """One model between forgetting and retention.

    Attributes:
        family: Family of a candidate; ``base``, ``over`` or ``under`` otherwise.
        forgotten: 1 minus the score on forget.
        retained: The score on retain.
        front: Whether the model is on the Pareto front.
    """

    model: str
    family: str
    forgotten: float
    retained: float
    front: bool


@dataclass(frozen=True)
class DensityCurves:
    """All curves of a run.

    Attributes:
        references: (model, metric, split, task, part) -> Score of base, over and under.
        chosen: Name of the chosen candidate; empty before a search.
    """

    curves: list[Curve]
    references: dict[tuple[str, str, str, str, str], Score]
    chosen: str = ""

    def of(self, metric: str, split: str, task: str = "") -> list[Curve]:
        """Return the curves of one score on the two splits, or on all data without a split."""
        wanted = (metric, split, task)
        matching = [c for c in self.curves if (c.metric, c.split, c.task) == wanted]
        parts = [c for c in matching if c.part != "all"]
        return parts or matching

    def measures(self, task: str = "") -> list[tuple[str, list[str]]]:
        """Return (metric, its splits) of all curves, the best-known metrics first."""
        splits: dict[str, list[str]] = {}
        for curve in self.curves:
            if curve.task == task and curve.split not in splits.setdefault(curve.metric, []):
                splits[curve.metric].append(curve.split)
        return sorted(splits.items(), key=lambda item: display_order(item[0]))

    def pairs(self, metric: str) -> list[Balance]:
        """Return forgetting and retention of every model, on the report split if there is one."""
        models: dict[str, tuple[str, dict[str, dict[str, float]]]] = {}
        for curve in self.curves:
            if curve.metric == metric and not curve.task:
                for p in curve.points:
                    parts = models.setdefault(p.model, (curve.family, {}))[1]
                    parts.setdefault(curve.part, {})[curve.split] = p.value
        for (model, name, split, task, part), score in self.references.items():
            if name == metric and not task:
                parts = models.setdefault(model, (model, {}))[1]
                parts.setdefault(part, {})[split] = score.value
        pairs = []
        for model, (family, parts) in models.items():
            shown = next((parts[p] for p in ("report", "all", "choose") if p in parts), {})
            if "forget" in shown and "retain" in shown:
                pairs.append((model, family, 1 - shown["forget"], shown["retain"]))
        fronts = on_front([(x, y) for _, _, x, y in pairs])
        return [Balance(*one, front) for one, front in zip(pairs, fronts, strict=True)]

    def reference(
        self, model: str, metric: str, split: str, task: str, parts: Sequence[str]
    ) -> Score | None:
        """Return the score of base, over or under on the first measured part of ``parts``."""
        candidates = (self.references.get((model, metric, split, task, p)) for p in parts)
        return next((score for score in candidates if score), None)


def run_density(run: Run) -> DensityCurves:
    """Return the density curves of a run.

    Raises:
        MissingError: No candidate with a density has been scored.
    """
    scores = run_scores(run)
    candidates = read_candidates(run, list(scores))
    curves = curves_of(scores, candidates)
    if not curves:
        raise MissingError(
            f"No candidate with a density has been scored in {run.root}. "
            f"`mergeforget search {run.root}` scores them."
        )
    references = {
        (model, s.metric, s.split, s.task, s.part): s
        for model in ANCHORS
        for s in scores.get(model, [])
    }
    chosen = read_chosen(run)
    return DensityCurves(curves, references, chosen.name if chosen else "")


def curves_of(scores: dict[str, list[Score]], candidates: dict[str, Candidate]) -> list[Curve]:
    """Return curves from the scores of candidates with a density."""
    points: dict[tuple[str, str, str, str, str], list[Point]] = {}
    for model, candidate in candidates.items():
        if candidate.density is None:
            continue
        for s in scores[model]:
            key = (s.metric, s.split, s.task, s.part, candidate.family)
            point = Point(model, candidate.density, s.value, s.interval, s.n)
            points.setdefault(key, []).append(point)
    ordered = sorted(points.items(), key=lambda item: (display_order(item[0][0]), item[0]))
    return [
        Curve(*key, tuple(sorted(found, key=lambda p: (p.density, p.model))))
        for key, found in ordered
    ]


def display_order(metric: str) -> int:
    """Return the position of a metric in the order of display; unknown metrics come last."""
    return ORDER.index(metric) if metric in ORDER else len(ORDER)


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return whether each point is on the Pareto front; higher is better in both coordinates."""
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def rows_of(curves: Iterable[Curve]) -> list[dict[str, Any]]:
    """Return one flat row per point, for csv."""
    return [
        {
            "metric": c.metric, "split": c.split, "task": c.task, "part": c.part,
            "family": c.family, "model": p.model, "density": p.density, "value": p.value,
            "low": p.interval[0] if p.interval else None,
            "high": p.interval[1] if p.interval else None, "n": p.n,
        }
        for c in curves
        for p in c.points
    ]  # fmt: skip
