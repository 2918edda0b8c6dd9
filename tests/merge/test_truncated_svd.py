"""Cuts to a rank: as good as the SVD, from factors, from dense changes, in numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.kernels.truncated_svd import cut_dense, cut_factors
from mergeforget.merge.methods import MERGE_METHODS

DRAW = np.random.default_rng(1)
SHAPES = [(40, 30), (30, 40), (7, 50), (50, 7)]


def best(delta: Any, rank: int) -> tuple[Any, float]:
    """The best approximation of a rank, and the squared norm of what it leaves out."""
    u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], float((s[rank:] ** 2).sum())


def factors(shape: tuple[int, int], k: int = 6) -> tuple[Any, Any]:
    spread = np.exp(-np.arange(k) / 2)
    a, b = DRAW.standard_normal((k, shape[1])), DRAW.standard_normal((shape[0], k)) * spread
    return a.astype(np.float32), b.astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 6, 60])
def test_factors_are_truncated_to_the_best_approximation(shape: tuple[int, int], rank: int) -> None:
    a, b = factors(shape)
    cut = cut_factors(a, b, rank)
    wanted, lost = best(b.astype(np.float64) @ a, rank)
    assert cut.a.dtype == cut.b.dtype == np.float32 and len(cut.a) == min(rank, 6)
    np.testing.assert_allclose(cut.b @ cut.a, wanted, atol=2e-5)
    np.testing.assert_allclose(cut.a @ cut.a.T, np.eye(len(cut.a)), atol=1e-6)
    assert cut.energy - cut.kept == pytest.approx(lost, rel=1e-6, abs=1e-9)


def test_dependent_factors_are_truncated_to_their_numerical_rank() -> None:
    a, b = factors((20, 30), 3)
    cut = cut_factors(np.concatenate([a, a, 0 * a]), np.concatenate([b, -b, b], axis=1), 5)
    assert np.abs(cut.b @ cut.a).max() < 1e-5  # they cancel
    twice = cut_factors(np.concatenate([a, a]), np.concatenate([b, b], axis=1), 5)
    assert len(twice.a) == 3
    np.testing.assert_allclose(twice.b @ twice.a, 2 * b @ a, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [2, 5, 60])
@pytest.mark.parametrize("torch_too", [False, True])
def test_exact_truncation_has_the_smallest_error(
    shape: tuple[int, int], rank: int, torch_too: bool
) -> None:
    a, b = factors(shape)
    delta = trim((b @ a)[None], 0.6)[0]
    cut = cut_dense(torch.from_numpy(delta) if torch_too else delta, rank, svd="exact")
    wanted, lost = best(delta, rank)
    np.testing.assert_allclose(np.asarray(cut.b @ cut.a), wanted, atol=1e-4)
    assert cut.energy - cut.kept == pytest.approx(lost, rel=1e-3, abs=3e-6 * cut.energy)


@pytest.mark.parametrize("shape", [(120, 90), (90, 120)])
@pytest.mark.parametrize("kept", [0.5, 0.8])
def test_fast_truncation_is_near_optimal_and_reports_its_error(
    shape: tuple[int, int], kept: float
) -> None:
    a, b = factors(shape, 8)
    delta = trim((b @ a)[None], kept)[0]
    cut = cut_dense(delta, 4, a)
    residual = float(np.square(delta - cut.b @ cut.a, dtype=np.float64).sum())
    assert cut.energy - cut.kept == pytest.approx(residual, rel=1e-4)
    assert residual <= best(delta, 4)[1] * (1 + 1e-4)


@pytest.mark.parametrize("method", ["ties", "magnitude_prune", "dare_ties"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
@pytest.mark.parametrize(("shape", "k"), [((64, 48), 4), ((64, 48), 8), ((288, 96), 16)])
def test_fast_truncation_is_within_its_bound_at_the_rank_of_the_start(
    method: str, density: float, shape: tuple[int, int], k: int
) -> None:
    """At the sum of the ranks, the start alone has no directions beyond the rank."""
    pair = [factors(shape, k) for _ in range(2)]
    stack, start = np.stack([b @ a for a, b in pair]), np.concatenate([a for a, _ in pair])
    given = {"generator": NamedGenerator(0, "module")} if method == "dare_ties" else {}
    delta = MERGE_METHODS.get(method).fn(stack, np.ones(2), density=density, **given)
    for rank in (k, 2 * k):
        cut = cut_dense(delta, rank, start)
        assert cut.energy - cut.kept <= best(delta, rank)[1] * (1 + 1e-4) + 1e-6 * cut.energy


@pytest.mark.parametrize("start", ["none", "the same rows twice", "enough"])
def test_too_few_starting_directions_are_completed(start: str) -> None:
    a, b = factors((40, 30))
    delta = trim((b @ a)[None], 0.5)[0]
    rows = {"none": None, "the same rows twice": np.concatenate([a, a]), "enough": delta}[start]
    cut = cut_dense(delta, 30, rows)
    np.testing.assert_allclose(cut.b @ cut.a, delta, atol=2e-5)


def test_a_zero_delta_is_truncated_to_zero() -> None:
    cut = cut_dense(np.zeros((4, 5), np.float32), 2)
    assert cut.a.shape == (2, 5) and cut.b.shape == (4, 2) and not cut.b.any()
    nothing = cut_factors(np.zeros((2, 5), np.float32), np.zeros((4, 2), np.float32), 2)
    assert not nothing.b.any() and np.isfinite(nothing.a).all()
