"""Scores by the density of the merge, and the density that the pair predicts.

Curves have intervals and the scores of base, over and under. ``merge.prediction`` predicts the
balanced density from the document losses of base, over and under.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.analysis.angles import angle, delta_grams
from mergeforget.analysis.evidence import (
    MissingError,
    has_adapter,
    read_candidates,
    read_chosen,
    read_losses,
    run_scores,
)
from mergeforget.candidate import Candidate
from mergeforget.merge.prediction import GRID, Floats, predict_gaps, with_one_density
from mergeforget.merge.request import takes_density
from mergeforget.recipe import Recipe, load_recipe
from mergeforget.run import ANCHORS, PAIR, Run
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


@dataclass(frozen=True)
class Prediction:
    """The loss gap of merges, predicted from the pair.

    Attributes:
        family: Method, space and weights of the merges.
        density: Density at which the gap is 0, or closest to 0.
        crosses: Whether the predicted gap changes its sign on the grid.
        grid: (n,) densities.
        gaps: (n,) predicted gap at each, in nats per token.
        pair: Measured gap of base, over and under.
        degrees: Angle between over and under.
        norms: Norms of over and under.
        found: (density, measured gap) of the evaluated candidates.
        chosen: Density that the search chose; None before a search, and if it differs by layer.
        began: First density of the search, predicted from the selection split.
    """

    family: str
    density: float
    crosses: bool
    grid: Floats
    gaps: Floats
    pair: dict[str, float]
    degrees: float | None
    norms: dict[str, float]
    found: list[tuple[float, float]]
    chosen: float | None = None
    began: float | None = None

    @property
    def sentence(self) -> str:
        """One sentence about the prediction, with the result of the search if there is one."""
        where = "is 0 at" if self.crosses else "never crosses 0 and is closest to it at"
        text = (
            "According to the prediction from the angle, norms and losses of the pair, the gap "
            f"between members and non-members of {self.family} {where} density {self.density:.2f}"
        )
        if self.chosen is None:
            return text + "."
        began = (
            f" started at {self.began:.2f}, predicted from the selection split, and"
            if self.began
            else ""
        )
        return f"{text}. The search{began} chose {self.chosen:g}."


def run_prediction(run: Run) -> Prediction:
    """Predict the balanced density of the chosen method, or of the recipe's first method.

    Raises:
        MissingError: The pair is not trained, or base, over and under were not measured.
    """
    pair = [read_adapter(run.root / side, side) for side in PAIR if has_adapter(run, side)]
    losses = {s: read_losses(run, s) for s in ANCHORS}
    measured = {model: found.gap for model, found in losses.items() if found is not None}
    if len(pair) < len(PAIR) or len(measured) < len(losses):
        raise MissingError(
            f"A prediction needs the trained pair and the document losses of base, over and under "
            f"in {run.root}. `mergeforget evaluate {run.root}` measures them."
        )
    chosen = read_chosen(run)
    candidate = chosen.candidate if chosen else first_candidate(load_recipe(run.recipe))
    by_layer = "density" in candidate.by_module
    candidate = with_one_density(candidate)
    if candidate.density is None:
        raise MissingError(f"{candidate.method} has no density that could be predicted.")
    found = predict(pair[0], pair[1], measured, candidate)
    return replace(
        found,
        found=measured_gaps(run, candidate),
        chosen=chosen.candidate.density if chosen and not by_layer else None,
        began=chosen.predicted if chosen else None,
    )


def predict(
    over: Adapter,
    under: Adapter,
    gaps: dict[str, float],
    candidate: Candidate,
    grid: Sequence[float] = GRID,
) -> Prediction:
    """Predict the gap by density for one family of merges, with norms and angle of the pair.

    The arguments are those of ``merge.prediction.predict_gaps``.
    """
    candidate = with_one_density(candidate)
    gap_curve = predict_gaps(over, under, gaps, candidate, grid)
    modules = sorted(over.deltas.keys() | under.deltas.keys())
    oo, ou, uu = delta_grams(over, under, modules).sum(axis=0)
    return Prediction(
        family=candidate.family, density=gap_curve.density, crosses=gap_curve.crosses,
        grid=gap_curve.grid, gaps=gap_curve.gaps, pair=gaps, degrees=angle(oo, uu, ou),
        norms={"over": float(np.sqrt(oo)), "under": float(np.sqrt(uu))}, found=[],
    )  # fmt: skip


def first_candidate(recipe: Recipe) -> Candidate:
    """Return the first candidate of the recipe's search, if possible of a method with a density."""
    s = recipe.search
    method = next((m for m in s.methods if takes_density(m)), s.methods[0])
    density = s.densities[0] if takes_density(method) else None
    return Candidate(method, density, tuple(s.weights[0]), s.spaces[0], seed=recipe.merge.seed)


def measured_gaps(run: Run, candidate: Candidate) -> list[tuple[float, float]]:
    """Return (density, gap) of the evaluated candidates of the same family."""
    measured = []
    for path in sorted(run.answers.glob("*.losses.jsonl")) if run.answers.is_dir() else []:
        model = path.name.removesuffix(".losses.jsonl")
        one = read_candidates(run, [model]).get(model)
        losses = read_losses(run, model)
        if one and losses and one.density is not None and one.family == candidate.family:
            measured.append((one.density, losses.gap))
    return sorted(measured)


def prediction_rows(prediction: Prediction) -> list[dict[str, Any]]:
    """Return one flat row per predicted or measured density."""
    predicted = [
        {"family": prediction.family, "density": d, "predicted_gap": g, "measured_gap": None}
        for d, g in zip(prediction.grid.tolist(), prediction.gaps.tolist(), strict=True)
    ]
    return predicted + [
        {"family": prediction.family, "density": d, "predicted_gap": None, "measured_gap": g}
        for d, g in prediction.found
    ]
