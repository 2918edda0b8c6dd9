"""Compares the predicted density with the results of the search.

``merge.prediction`` computes the prediction from the document losses of base, over and under.
"""

from __future__ import annotations

from collections.abc import Sequence
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
)
from mergeforget.candidate import Candidate
from mergeforget.merge.prediction import GRID, Floats, predict_gaps, with_one_density
from mergeforget.merge.request import takes_density
from mergeforget.recipe import Recipe, load_recipe
from mergeforget.run import ANCHORS, PAIR, Run


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


def rows_of(prediction: Prediction) -> list[dict[str, Any]]:
    """Return one flat row per predicted or measured density."""
    predicted = [
        {"family": prediction.family, "density": d, "predicted_gap": g, "measured_gap": None}
        for d, g in zip(prediction.grid.tolist(), prediction.gaps.tolist(), strict=True)
    ]
    return predicted + [
        {"family": prediction.family, "density": d, "predicted_gap": None, "measured_gap": g}
        for d, g in prediction.found
    ]
