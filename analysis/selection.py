"""Prediction of the balanced density before any merge is evaluated.

The gap of a model is the mean loss of members less that of non-members, in nats a token: below 0 it
remembers, above 0 it has forgotten too much, and at 0 the two cannot be told apart by their means.
Base, over and under have a measured gap. To first order the gap is a linear function of the change
of the weights; of all linear functions that agree with the three, the one of least norm is

    gap(v) = gap(base) + c_over <over, v> + c_under <under, v>

with ``G c = (gap(over) - gap(base), gap(under) - gap(base))`` and G the inner products of the pair,
that is its norms and its angle. A merge at any density is a change v whose two inner products are
cheap, so the density at which the gap is 0 is found without running a model.

The prediction is a first guess: the gap bends where a loss saturates. It reads all document losses
of the pair, and none of a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.analysis.angles import angle, delta_grams
from mergeforget.analysis.density import family_of
from mergeforget.analysis.evidence import (
    PAIR,
    MissingError,
    has_adapter,
    read_candidates,
    read_chosen,
)
from mergeforget.analysis.membership import Losses, read_losses
from mergeforget.candidate import Candidate
from mergeforget.merge.overlap import overlaps
from mergeforget.recipe import Recipe, load_recipe
from mergeforget.run import Run

Floats = NDArray[np.float64]
GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))


@dataclass(frozen=True)
class Prediction:
    """What the pair says about its merges.

    Attributes:
        family: method, space and weights of the merges.
        density: at which the gap is 0, or nearest 0 where it never is.
        crosses: whether the predicted gap changes its sign between the ends of the grid.
        grid: (n,) densities.
        gaps: (n,) predicted gap at each, in nats a token.
        pair: measured gap of base, over and under.
        degrees: between over and under.
        norms: of over and under.
        found: (density, measured gap) of the candidates that were evaluated since.
        chosen: density that the search chose; None before.
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

    @property
    def sentence(self) -> str:
        """One sentence, with what the search found where it has."""
        where = "is 0 at" if self.crosses else "never crosses 0; it comes nearest at"
        text = (
            "Predicted from the angle of the pair, its norms and its losses, the gap between "
            f"members and non-members of {self.family} {where} density {self.density:.2f}"
        )
        found = f"; the search chose {self.chosen:g}" if self.chosen is not None else ""
        return text + found + "."


def run_prediction(run: Run) -> Prediction:
    """Predict the balanced density of the chosen method, or of the recipe's first.

    Raises:
        MissingError: the pair is not trained, or base, over and under were not measured.
    """
    pair = [read_adapter(run.root / side, side) for side in PAIR if has_adapter(run, side)]
    losses = {s: read_losses(run, s) for s in ("base", *PAIR)}
    measured = {subject: gap_of(found) for subject, found in losses.items() if found is not None}
    if len(pair) < len(PAIR) or len(measured) < len(losses):
        raise MissingError(
            f"A prediction needs the trained pair and the document losses of base, over and under "
            f"in {run.root}. `mergeforget evaluate {run.root}` measures them."
        )
    chosen = read_chosen(run)
    candidate = chosen.candidate if chosen else first_candidate(load_recipe(run.recipe))
    if candidate.density is None:
        raise MissingError(f"{candidate.method} has no density that could be predicted.")
    found = predict(pair[0], pair[1], measured, candidate)
    return replace(
        found,
        found=measured_gaps(run, candidate),
        chosen=chosen.candidate.density if chosen else None,
    )


def predict(
    over: Adapter,
    under: Adapter,
    gaps: dict[str, float],
    candidate: Candidate,
    grid: Sequence[float] = GRID,
) -> Prediction:
    """The predicted gap along the densities of one family, and where it is 0.

    Args:
        gaps: measured gap of ``base``, ``over`` and ``under``, in nats a token.
        candidate: method, space, weights; its density is not read.
    """
    modules = sorted(over.deltas.keys() | under.deltas.keys())
    oo, ou, uu = delta_grams(over, under, modules).sum(axis=0)
    gram = np.array([[oo, ou], [ou, uu]])
    rise = np.array([gaps["over"] - gaps["base"], gaps["under"] - gaps["base"]])
    slopes = np.linalg.lstsq(gram, rise, rcond=1e-10)[0]  # least norm where the two are parallel
    predicted = gaps["base"] + overlaps([over, under], candidate, list(grid)) @ slopes
    density, crosses = zero_of(np.array(grid), predicted)
    return Prediction(
        family=family_of(candidate), density=density, crosses=crosses, grid=np.array(grid),
        gaps=predicted, pair=gaps, degrees=angle(oo, uu, ou),
        norms={"over": float(np.sqrt(oo)), "under": float(np.sqrt(uu))}, found=[],
    )  # fmt: skip


def zero_of(x: Floats, y: Floats) -> tuple[float, bool]:
    """Where a curve crosses 0, interpolated; its nearest point where it does not.

    Of several crossings the one with the largest x is taken: there the most entries are kept.
    """
    signs = np.sign(y)
    at = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    if np.any(y == 0):
        return float(x[np.flatnonzero(y == 0)[-1]]), True
    if not len(at):
        return float(x[np.argmin(np.abs(y))]), False
    i = int(at[-1])
    return float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1])), True


def gap_of(losses: Losses) -> float:
    """Mean loss of members less that of non-members, in nats a token."""
    return float(losses.members.mean() - losses.nonmembers.mean())


def first_candidate(recipe: Recipe) -> Candidate:
    """The first that the recipe's search would try."""
    s = recipe.search
    return Candidate(
        s.methods[0], s.densities[0], tuple(s.weights[0]), s.spaces[0], seed=recipe.merge.seed
    )


def measured_gaps(run: Run, candidate: Candidate) -> list[tuple[float, float]]:
    """(density, gap) of the evaluated candidates of the same family."""
    found = []
    for path in sorted(run.answers.glob("*.losses.jsonl")) if run.answers.is_dir() else []:
        subject = path.name.removesuffix(".losses.jsonl")
        one = read_candidates(run, [subject]).get(subject)
        losses = read_losses(run, subject)
        if one and losses and one.density is not None and family_of(one) == family_of(candidate):
            found.append((one.density, gap_of(losses)))
    return sorted(found)


def rows_of(found: Prediction) -> list[dict[str, Any]]:
    """One flat row a density, predicted and measured."""
    predicted = [
        {"family": found.family, "density": d, "predicted_gap": g, "measured_gap": None}
        for d, g in zip(found.grid.tolist(), found.gaps.tolist(), strict=True)
    ]
    return predicted + [
        {"family": found.family, "density": d, "predicted_gap": None, "measured_gap": g}
        for d, g in found.found
    ]
