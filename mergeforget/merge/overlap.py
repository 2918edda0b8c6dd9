"""How much of each adapter a merge holds, without cutting the merge back to a rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.console import progress
from mergeforget.merge.blockwise import merge_whole
from mergeforget.merge.by_module import at_module, depth_of
from mergeforget.merge.engine import How, at_densities, is_dense, merge_module, products
from mergeforget.merge.kernels.threads import workers

Floats = NDArray[np.float64]


def overlaps(
    adapters: Sequence[Adapter], candidate: Candidate, densities: Sequence[float | None]
) -> Floats:
    """Inner products of the merged change with every adapter's, in all, (densities, adapters).

    A merge of dense changes is measured as the method gives it: its singular value decomposition,
    nine tenths of the time of such a merge, would change the products by next to nothing.

    Raises:
        as ``engine.merge_adapters``.
    """
    candidates, modules = at_densities(adapters, candidate, densities, How())
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
        parts = merge_module(module, adapters, candidates, How())
        return np.array([[part.delta.inner(delta) for delta in deltas] for part in parts])
    weights = np.array(candidates[0].weights, np.float64)
    merged = merge_whole(products(deltas), weights, candidates, module)
    return np.array([[_inner(x, delta) for delta in deltas] for x in merged])


def _inner(dense: NDArray[np.floating], delta: LowRankDelta) -> float:
    """Frobenius inner product of a dense (out, in) change and one of low rank."""
    core = (delta.b.T @ dense) * delta.a  # <b a, x> = sum((b.T x) * a)
    return float(delta.scaling * core.sum(dtype=np.float64))
