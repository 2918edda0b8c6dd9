"""Norms, ranks, overlap and signs against plain computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finished_run import adapter

from mergeforget.adapter import Adapter, LowRankDelta, write_adapter
from mergeforget.analysis.evidence import MissingError
from mergeforget.analysis.findings import weights
from mergeforget.analysis.weights import (
    agreement,
    effective_rank,
    module_facts,
    run_weights,
    singular_values,
)
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.run import Run


def test_singular_values_equal_those_of_the_dense_delta() -> None:
    delta = next(iter(adapter("over", 1).deltas.values()))
    dense = np.linalg.svd(delta.dense().astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_values(delta), dense[:4], rtol=1e-5)


def test_effective_rank_matches_a_hand_calculation() -> None:
    """Equal values count in full; one alone counts as one; (3, 1): exp(H(3/4, 1/4)) = 1.7548."""
    assert effective_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(np.array([5.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(4 / 3**0.75)
    assert effective_rank(np.zeros(3)) == 0


def test_norms_of_the_modules_add_up_to_that_of_the_adapter() -> None:
    one = adapter("over", 1)
    facts = module_facts(one)
    assert len(facts) == 28 and {f.kind for f in facts} >= {"q_proj", "down_proj"}
    assert facts[0].norm == pytest.approx(np.linalg.norm(one.deltas[facts[0].module].dense()))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_agreement_counts_the_entries_that_a_trim_keeps(density: float) -> None:
    over, under = adapter("over", 1), adapter("under", 2)
    both = either = conflict = 0
    for module, delta in over.deltas.items():
        for one, two in ((delta.a, under.deltas[module].a), (delta.b, under.deltas[module].b)):
            x, y = trim(np.stack([one, two]), density)
            both += ((x != 0) & (y != 0)).sum()
            either += ((x != 0) | (y != 0)).sum()
            conflict += (x * y < 0).sum()
    (found,) = agreement(over, under, [density])
    assert found.overlap == pytest.approx(both / either)
    assert found.conflict == pytest.approx(conflict / both)


def test_an_adapter_agrees_with_itself() -> None:
    one = adapter("over", 1)
    assert {(a.overlap, a.conflict) for a in agreement(one, one)} == {(1.0, 0.0)}


def test_factors_of_different_ranks_are_not_compared(tmp_path: Path) -> None:
    for side, rank in (("over", 4), ("under", 8)):
        write_adapter(adapter(side, 1, rank=rank), tmp_path / side)
    sentences, _, pictures = weights(Run(tmp_path))
    assert sentences[-1] == "The ranks of over and under differ, so factors cannot be compared."
    assert [picture.name for picture in pictures] == ["weights-layers"]


def test_error_without_a_pair_names_the_training_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="train-pair"):
        run_weights(Run(tmp_path))


def test_entries_of_zero_are_neither_kept_nor_in_agreement() -> None:
    """Two embeddings of 100 rows, of which each adapter trains others, and an untouched expert."""
    draw = np.random.default_rng(0)

    def trained(first: int, last: int) -> Adapter:
        rows = np.zeros((100, 4), np.float32)
        rows[first:last] = draw.standard_normal((last - first, 4))
        none = LowRankDelta(np.zeros((4, 8), np.float32), np.zeros((8, 4), np.float32), 1.0)
        some = LowRankDelta(np.zeros((4, 8), np.float32), rows, 1.0)
        return Adapter("x", {"embed_tokens": some, "experts[1]": none}, {"peft_type": "LORA"})

    apart = agreement(trained(0, 10), trained(50, 60), [0.05, 0.5, 1.0])
    assert [(a.overlap, a.conflict) for a in apart] == [(0.0, 0.0)] * 3
    one, other = trained(0, 10), trained(5, 15)
    (whole,) = agreement(one, other, [1.0])
    x, y = one.deltas["embed_tokens"].b, other.deltas["embed_tokens"].b
    assert whole.overlap == pytest.approx(20 / 60)
    assert whole.conflict == pytest.approx((x * y < 0).sum() / 20)
    assert whole.overlap_by_chance == pytest.approx(4 / (40 + 40 - 4))  # 40 * 40 / 400 in both
    (dense,) = agreement(adapter("over", 1), adapter("under", 2), [0.5])
    assert dense.overlap_by_chance == pytest.approx(0.5 / 1.5)
