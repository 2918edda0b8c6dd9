"""NGDiff and the fitted rates: properties, closed forms and worked examples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergeforget.train.directions import (
    clipped,
    fitted_rate,
    inner,
    ngdiff,
    norm,
    probed_rate,
    rectified,
)


def gradient(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, generator=generator).double(), torch.randn(4, generator=generator)]


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_ngdiff_lowers_the_retain_loss_and_raises_the_forget_loss(one: int, other: int) -> None:
    retain, forget = gradient(one), gradient(other)
    g = ngdiff(retain, forget)
    assert inner(retain, g) >= -1e-6 and inner(forget, g) <= 1e-6


def test_ngdiff_matches_a_hand_calculation() -> None:
    # (3, 4) / 5 - (0, -2) / 2 = (0.6, 0.8 + 1)
    (g,) = ngdiff([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, -2.0])])
    torch.testing.assert_close(g, torch.tensor([0.6, 1.8]))


@pytest.mark.parametrize("seed", range(5))
def test_rectified_is_the_nearest_gradient_that_does_not_raise_the_retain_loss(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    g, r = (
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))]
        for _ in range(2)
    )
    step = rectified(g, r)
    conflict = inner(g, r)
    if conflict >= 0:
        assert all(torch.equal(a, b) for a, b in zip(step, g, strict=True))
        return
    assert inner(step, r) == pytest.approx(0, abs=1e-12)
    moved = [a - b for a, b in zip(step, g, strict=True)]  # along r alone
    assert inner(moved, r) ** 2 == pytest.approx(inner(moved, moved) * inner(r, r))


def test_rectifying_without_a_retain_gradient_has_no_effect() -> None:
    g, zero = [torch.ones(2)], [torch.zeros(2)]
    assert torch.equal(rectified(g, zero)[0], g[0])


def test_ngdiff_of_a_vanished_gradient_is_finite() -> None:
    g = ngdiff([torch.zeros(2)], [torch.tensor([0.0, 2.0])])
    torch.testing.assert_close(g[0], torch.tensor([0.0, -1.0]))


def test_norms_include_all_parameters() -> None:
    assert norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == 5.0
    assert norm(clipped([torch.tensor([3.0]), torch.tensor([[4.0]])], 1.0)) == pytest.approx(1)
    kept = [torch.tensor([0.3])]
    assert clipped(kept, 1.0)[0] == kept[0]


def test_probed_rate_is_the_closed_form_on_a_quadratic() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    hessian, slope = root @ root.T, torch.randn(5, generator=generator, dtype=torch.float64)
    theta = torch.randn(5, generator=generator, dtype=torch.float64)

    def loss(at: Tensor) -> float:
        return float(slope @ at + at @ hessian @ at / 2)

    g_retain = slope + hessian @ theta
    (g,) = ngdiff([g_retain], [torch.randn(5, generator=generator, dtype=torch.float64)])
    rate = 0.03
    fit = probed_rate(rate, loss(theta - rate * g), loss(theta), loss(theta + rate * g))
    assert fit.accepted and fit.rate == pytest.approx(float(g_retain @ g / (g @ hessian @ g)))
    assert fit.curvature == pytest.approx(float(g @ hessian @ g))
    best = loss(theta - fit.rate * g)
    assert best <= min(loss(theta - r * fit.rate * g) for r in (0.9, 1.1))


@pytest.mark.parametrize(
    ("ahead", "here", "behind", "fitted"),
    [
        (0.0, 1.0, 0.0, 0.0),  # curvature -2: bends down
        (2.0, 1.0, 1.0, -0.5),  # bends up, but the minimum lies behind: (1 - 2) / (2 * 1)
        (2.0, 1.0, 0.0, math.nan),  # a straight line
    ],
)
def test_probed_rate_is_kept_where_the_parabola_has_no_minimum_ahead(
    ahead: float, here: float, behind: float, fitted: float
) -> None:
    fit = probed_rate(1.0, ahead, here, behind)
    assert fit.rate == 1.0 and not fit.accepted
    assert fit.fitted == pytest.approx(fitted, nan_ok=True)


def test_fitted_rate_is_its_closed_form() -> None:
    retain, step = gradient(1), ngdiff(gradient(1), gradient(2))
    fit = fitted_rate(retain, step, [1e-5, 3e-5, 1e-4, 1e-3])
    assert fit.rate == pytest.approx(inner(retain, step) / inner(step, step), rel=1e-6)
    assert fit.accepted and fit.curvature == pytest.approx(2 * inner(step, step), rel=1e-6)


def test_fitted_rate_falls_back_to_the_smallest_candidate() -> None:
    against = [-g for g in gradient(1)]
    fit = fitted_rate(gradient(1), against, [0.2, 0.1, 0.3])
    assert fit.rate == pytest.approx(0.1) and not fit.accepted
