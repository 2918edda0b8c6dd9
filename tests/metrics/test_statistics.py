"""Areas under the curve and intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mergeforget.metrics._statistics import (
    RESAMPLES,
    auc,
    auc_draws,
    combined_draws,
    interval_of,
    mean_draws,
    mean_score,
    share_above_draws,
)
from mergeforget.score import harmonic_mean

SCORES = st.lists(st.sampled_from([-3.0, -1.5, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=20)


@given(SCORES, SCORES)
def test_auc_equals_scikit_learn(members: list[float], nonmembers: list[float]) -> None:
    labels = [1] * len(members) + [0] * len(nonmembers)
    theirs = roc_auc_score(labels, members + nonmembers)
    assert auc(members, nonmembers) == pytest.approx(theirs, abs=1e-12)


def test_auc_by_hand() -> None:
    # pairs: 2>1, 2>2 is a tie, 0<1, 0<2: (1 + .5) / 4
    assert auc([2, 0], [1, 2]) == 0.375


def test_interval_of_an_auc_equals_resampling_the_documents() -> None:
    draw = np.random.default_rng(1)
    members = draw.normal(0.5, 1, 60).tolist()
    nonmembers = draw.normal(0, 1, 50).tolist()
    plain = [
        auc(list(draw.choice(members, 60)), list(draw.choice(nonmembers, 50))) for _ in range(4000)
    ]
    ours = interval_of(auc_draws(members, nonmembers))
    assert ours == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.015)


@pytest.mark.parametrize("values", [[0.0] * 70 + [1.0] * 30, list(np.linspace(0, 1, 100))])
def test_interval_of_a_mean_has_the_normal_width(values: list[float]) -> None:
    error = np.std(values) / np.sqrt(len(values))
    interval = interval_of(mean_draws(values))
    assert interval is not None
    low, high = interval
    assert (low, high) == pytest.approx(
        (np.mean(values) - 1.96 * error, np.mean(values) + 1.96 * error), abs=0.15 * error + 0.01
    )
    assert interval_of(mean_draws(values)) == interval


@pytest.mark.parametrize("allowed", [0, 2])
def test_the_threshold_is_found_anew_in_each_draw(allowed: int) -> None:
    draw = np.random.default_rng(4)
    members, nonmembers = draw.normal(1.5, 1, 50), draw.normal(0, 1, 40)
    plain = []
    for _ in range(4000):
        threshold = np.sort(draw.choice(nonmembers, 40))[-1 - allowed]
        plain.append(np.mean(draw.choice(members, 50) > threshold))
    ours = share_above_draws(members.tolist(), nonmembers.tolist(), allowed)
    assert ours.mean() == pytest.approx(np.mean(plain), abs=0.02)
    assert interval_of(ours) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.03)


def test_a_combination_draws_the_rows_of_its_parts() -> None:
    draw = np.random.default_rng(2)
    first, second = draw.uniform(0.2, 0.9, 80), draw.uniform(0.4, 1, 50)
    plain = [
        2 / (1 / draw.choice(first, 80).mean() + 1 / draw.choice(second, 50).mean())
        for _ in range(4000)
    ]
    parts = [mean_draws(first.tolist(), seed=1), mean_draws(second.tolist(), seed=2)]
    ours = interval_of(combined_draws(parts, harmonic_mean))
    assert ours == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.01)


def test_scores_by_row_draw_the_same_rows_whatever_their_values() -> None:
    """A yes or no that follows from a number must rise and fall with it from draw to draw."""
    values = np.random.default_rng(3).uniform(0, 1, 120)
    number, yes = (
        mean_score("m", "retain", kind.tolist(), "higher", by_row=True)
        for kind in (values, (values > 0.5).astype(float))
    )
    assert number is not None and yes is not None
    assert number.draws is not None and yes.draws is not None
    assert np.corrcoef(number.draws, yes.draws)[0, 1] > 0.8


def test_a_part_without_rows_leaves_no_interval() -> None:
    assert combined_draws([mean_draws([0.1, 0.2]), None], harmonic_mean) is None
    assert combined_draws([], harmonic_mean) is None


def test_scores_of_the_same_rows_draw_them_alike_and_others_do_not() -> None:
    values = np.random.default_rng(3).uniform(0, 1, 40).tolist()
    same, again, other = (
        mean_score("m", "retain", values, "higher", kind=kind) for kind in ("qa", "qa", "sc")
    )
    assert same is not None and again is not None and other is not None
    assert same.draws is not None and again.draws is not None and other.draws is not None
    assert (same.draws == again.draws).all() and len(same.draws) == RESAMPLES
    assert abs(np.corrcoef(same.draws, other.draws)[0, 1]) < 0.2
