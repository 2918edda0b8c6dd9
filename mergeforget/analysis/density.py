"""Every score against the density of the merge, with its interval and the pair beside it."""

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
        interval: 95 %, where the score has one.
    """

    model: str
    density: float
    value: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Curve:
    """One score of all candidates that differ in nothing but the density.

    Attributes:
        family: method, space and weights, for example ``ties factors``.
        part: the half of the data: ``choose``, ``report``, or ``all``.
        points: by density.
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
        family: of a candidate; ``base``, ``over`` or ``under`` otherwise.
        forgotten: 1 less the score on forget.
        retained: the score on retain.
        front: no other model forgets and retains as well and one of them better.
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
        chosen: name of the chosen candidate; empty before a search.
    """

    curves: list[Curve]
    references: dict[tuple[str, str, str, str, str], Score]
    chosen: str = ""

    def of(self, metric: str, split: str, task: str = "") -> list[Curve]:
        """Curves of one score: of the two halves, or of all data where they are not apart."""
        wanted = (metric, split, task)
        found = [c for c in self.curves if (c.metric, c.split, c.task) == wanted]
        halves = [c for c in found if c.part != "all"]
        return halves or found

    def measures(self, task: str = "") -> list[tuple[str, list[str]]]:
        """(metric, its splits) that there is a curve of, the best known first."""
        splits: dict[str, list[str]] = {}
        for curve in self.curves:
            if curve.task == task and curve.split not in splits.setdefault(curve.metric, []):
                splits[curve.metric].append(curve.split)
        return sorted(splits.items(), key=lambda item: place(item[0]))

    def pairs(self, metric: str) -> list[Balance]:
        """Forgetting and retention of every model, on the half that reports where there is one."""
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
        found = []
        for model, (family, parts) in models.items():
            shown = next((parts[p] for p in ("report", "all", "choose") if p in parts), {})
            if "forget" in shown and "retain" in shown:
                found.append((model, family, 1 - shown["forget"], shown["retain"]))
        fronts = on_front([(x, y) for _, _, x, y in found])
        return [Balance(*one, front) for one, front in zip(found, fronts, strict=True)]

    def reference(
        self, model: str, metric: str, split: str, task: str, parts: Sequence[str]
    ) -> Score | None:
        """The score of base, over or under on the first of ``parts`` that was measured."""
        every = (self.references.get((model, metric, split, task, p)) for p in parts)
        return next((score for score in every if score), None)


def run_density(run: Run) -> DensityCurves:
    """The density curves of a run.

    Raises:
        MissingError: no candidate with a density has been scored.
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
    """Curves from the scores of candidates that have a density."""
    points: dict[tuple[str, str, str, str, str], list[Point]] = {}
    for model, candidate in candidates.items():
        if candidate.density is None:
            continue
        for s in scores[model]:
            key = (s.metric, s.split, s.task, s.part, candidate.family)
            point = Point(model, candidate.density, s.value, s.interval, s.n)
            points.setdefault(key, []).append(point)
    ordered = sorted(points.items(), key=lambda item: (place(item[0][0]), item[0]))
    return [
        Curve(*key, tuple(sorted(found, key=lambda p: (p.density, p.model))))
        for key, found in ordered
    ]


def place(metric: str) -> int:
    """Where a metric stands among the others; unknown ones come last."""
    return ORDER.index(metric) if metric in ORDER else len(ORDER)


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at least as good in both and better in one; more is better."""
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def rows_of(curves: Iterable[Curve]) -> list[dict[str, Any]]:
    """One flat row a point, for csv."""
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
