"""Prediction of the balanced density before any merge is evaluated.

The gap of a model is the mean loss of members less that of non-members, in nats a token: below 0 it
remembers, above 0 it has forgotten too much, and at 0 the two cannot be told apart by their means.
Base, over and under have a measured gap. To first order the gap is a linear function of the change
of the weights; of all linear functions that agree with the three, the one of least norm is

    gap(v) = gap(base) + c_over <over, v> + c_under <under, v>

with ``G c = (gap(over) - gap(base), gap(under) - gap(base))`` and G the inner products of the pair,
that is its norms and its angle. A merge at any density is a change v whose two inner products are
cheap, so the density at which the gap is 0 is found without running a model.

The prediction is a first guess: the gap bends where a loss saturates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.console import progress
from mergeforget.merge.blockwise import merge_whole
from mergeforget.merge.by_module import at_module, depth_of
from mergeforget.merge.engine import MergeSettings, at_densities, is_dense, merge_module, products
from mergeforget.merge.kernels.arrays import as_array
from mergeforget.merge.kernels.dispatch import workers

Floats = NDArray[np.float64]
GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))


@dataclass(frozen=True)
class PredictedGaps:
    """The gap along the densities of one family of merges.

    Attributes:
        density: at which the gap is 0, or nearest 0 where it never is.
        crosses: whether the gap changes its sign between the ends of the grid.
        grid: (n,) densities, rising.
        gaps: (n,) predicted gap at each, in nats a token.
    """

    density: float
    crosses: bool
    grid: Floats
    gaps: Floats


def predict_gaps(
    over: Adapter,
    under: Adapter,
    gaps: Mapping[str, float],
    candidate: Candidate,
    grid: Sequence[float] = GRID,
) -> PredictedGaps:
    """The predicted gap along the densities of one family, and where it is 0.

    Args:
        gaps: measured gap of ``base``, ``over`` and ``under``, in nats a token.
        candidate: method, space, weights; its density is not read.
        grid: densities, rising; one merge each.
    """
    pair = [over, under]
    gram = np.array([[inner(one, other) for other in pair] for one in pair])
    rise = np.array([gaps["over"] - gaps["base"], gaps["under"] - gaps["base"]])
    slopes = np.linalg.lstsq(gram, rise, rcond=1e-10)[0]  # least norm where the two are parallel
    predicted = gaps["base"] + overlaps(pair, candidate, list(grid)) @ slopes
    density, crosses = zero_of(np.array(grid), predicted)
    return PredictedGaps(density, crosses, np.array(grid), predicted)


def inner(one: Adapter, other: Adapter) -> float:
    """Inner product of two changes, over the modules that both change."""
    shared = sorted(one.deltas.keys() & other.deltas.keys())
    return sum(one.deltas[module].inner(other.deltas[module]) for module in shared)


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


def overlaps(
    adapters: Sequence[Adapter], candidate: Candidate, densities: Sequence[float | None]
) -> Floats:
    """Inner products of the merged change with every adapter's, in all, (densities, adapters).

    A merge of dense changes is measured as the method gives it: its singular value decomposition,
    nine tenths of the time of such a merge, would change the products by next to nothing.

    Raises:
        as ``engine.merge_adapters``.
    """
    candidates, modules = at_densities(adapters, candidate, densities, MergeSettings())
    depth = depth_of(modules)

    def measure(module: str) -> Floats:
        here = [at_module(one, module, depth[module]) for one in candidates]
        return _at_module(module, adapters, here)

    total = np.zeros((len(candidates), len(adapters)))
    with progress("Predicting", len(modules)) as bar, workers() as pool:
        for found in pool.map(measure, modules):
            total += found
            bar.advance()
    return total


def _at_module(module: str, adapters: Sequence[Adapter], candidates: Sequence[Candidate]) -> Floats:
    deltas = [adapter.deltas[module] for adapter in adapters]
    if not is_dense(candidates[0]):
        parts = merge_module(module, adapters, candidates, MergeSettings())
        return np.array([[part.delta.inner(delta) for delta in deltas] for part in parts])
    weights = np.array(candidates[0].weights, np.float64)
    merged = map(as_array, merge_whole(products(deltas), weights, candidates, module))
    return np.array([[_inner(x, delta) for delta in deltas] for x in merged])


def _inner(dense: NDArray[np.floating], delta: LowRankDelta) -> float:
    """Frobenius inner product of a dense (out, in) change and one of low rank."""
    core = (delta.b.T @ dense) * delta.a  # <b a, x> = sum((b.T x) * a)
    return float(delta.scaling * core.sum(dtype=np.float64))
