"""Predict the balanced density before any merge is evaluated.

The gap of a model is the mean loss of members minus that of non-members, in nats per token: below
0, the model remembers; above 0, it has forgotten too much; at 0, both have the same mean loss. The
gaps of base, over and under are measured. To first order the gap is a linear function of the delta
of the weights. Of the linear functions that agree with the three measurements, the one of least
norm is

    gap(v) = gap(base) + c_over <over, v> + c_under <under, v>

with ``G c = (gap(over) - gap(base), gap(under) - gap(base))`` and G the inner products of the pair,
that is, its norms and its angle. A merge is a delta v whose two inner products are
cheap, so the density with gap 0 is found without running a model.

The prediction is approximate: the gap is not linear where a loss saturates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.console import progress
from mergeforget.merge.blockwise import merge_whole
from mergeforget.merge.engine import MergeSettings, at_densities, is_dense, merge_module
from mergeforget.merge.kernels.arrays import as_array
from mergeforget.merge.kernels.dispatch import workers
from mergeforget.merge.kernels.low_rank import products
from mergeforget.merge.request import at_module, depth_of

Floats = NDArray[np.float64]
GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))


@dataclass(frozen=True)
class PredictedGaps:
    """Predicted gap as a function of the density, for one family of merges.

    Attributes:
        density: Density at which the gap is 0, or closest to 0.
        crosses: Whether the gap changes sign on the grid.
        grid: (n,) densities in ascending order.
        gaps: (n,) predicted gaps, in nats per token.
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
    """Predict the gap for the densities of one family, and the density at which it is 0.

    Args:
        gaps: Measured gaps of ``base``, ``over`` and ``under``, in nats per token.
        candidate: Method, space and weights; its densities are ignored, also those by module.
        grid: Densities in ascending order; each is merged once.
    """
    pair = [over, under]
    candidate = with_one_density(candidate)
    gram = np.array([[inner(one, other) for other in pair] for one in pair])
    rise = np.array([gaps["over"] - gaps["base"], gaps["under"] - gaps["base"]])
    slopes = np.linalg.lstsq(gram, rise, rcond=1e-10)[0]  # least norm if the two are parallel
    predicted = gaps["base"] + overlaps(pair, candidate, list(grid)) @ slopes
    density, crosses = zero_of(np.array(grid), predicted)
    return PredictedGaps(density, crosses, np.array(grid), predicted)


def with_one_density(candidate: Candidate) -> Candidate:
    """Return the candidate without densities by module, which would override its density."""
    by_module = {key: one for key, one in candidate.by_module.items() if key != "density"}
    return replace(candidate, by_module=by_module)


def inner(one: Adapter, other: Adapter) -> float:
    """Return the inner product of two adapters over their common modules."""
    shared = sorted(one.deltas.keys() & other.deltas.keys())
    return sum(one.deltas[module].inner(other.deltas[module]) for module in shared)


def zero_of(x: Floats, y: Floats) -> tuple[float, bool]:
    """Return the interpolated zero of a curve, or its point closest to 0.

    Among several zeros, the one with the largest x is returned, which keeps the most entries.
    """
    signs = np.sign(y)
    zeros = [float(value) for value in x[y == 0]]
    for i in np.flatnonzero(signs[:-1] * signs[1:] < 0):
        zeros.append(float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1])))
    return (max(zeros), True) if zeros else (float(x[np.argmin(np.abs(y))]), False)


def overlaps(
    adapters: Sequence[Adapter], candidate: Candidate, densities: Sequence[float | None]
) -> Floats:
    """Return the inner products of each merge with each adapter, (densities, adapters).

    A dense merge is measured before the truncation: the singular value decomposition,
    nine tenths of the time of such a merge, hardly changes the products.

    Raises:
        UsageError, InputError, NumericError: As in ``engine.merge_adapters``.
    """
    candidates, modules = at_densities(adapters, candidate, densities, MergeSettings())
    depth = depth_of(modules)

    def measure(module: str) -> Floats:
        settings = [at_module(one, module, depth[module]) for one in candidates]
        return _at_module(module, adapters, settings)

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
    """Return the Frobenius inner product of a dense (out, in) delta and a low-rank one."""
    core = (delta.b.T @ dense) * delta.a  # <b a, x> = sum((b.T x) * a)
    return float(delta.scaling * core.sum(dtype=np.float64))
