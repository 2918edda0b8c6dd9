"""Inner products of a merge with what was merged."""

from __future__ import annotations

import pytest
from finished_run import adapter

from mergeforget.candidate import Candidate, Space
from mergeforget.merge.engine import is_dense, merge_adapters
from mergeforget.merge.prediction import overlaps

PAIR = [adapter("over", 1), adapter("under", 2)]
FULL = min(PAIR[0].deltas[next(iter(PAIR[0].deltas))].shape)


@pytest.mark.parametrize("method", ["ties", "linear", "cat", "magnitude_prune", "dare_ties"])
@pytest.mark.parametrize("space", ["factors", "delta"])
def test_predicted_overlaps_equal_those_of_the_full_rank_merge(method: str, space: Space) -> None:
    if (method, space) == ("cat", "factors"):
        pytest.skip("cat stacks the factors: it is a merge of the changes")
    densities = [0.3, 1.0] if method not in ("linear", "cat") else [None]
    found = overlaps(PAIR, Candidate(method, space=space), densities)
    rank = FULL if is_dense(Candidate(method, space=space)) else None
    for row, density in zip(found, densities, strict=True):
        merged = merge_adapters(PAIR, Candidate(method, density, space=space, rank=rank)).adapter
        for value, side in zip(row, PAIR, strict=True):
            expected = sum(merged.deltas[m].inner(side.deltas[m]) for m in side.deltas)
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
