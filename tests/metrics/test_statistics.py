"""Areas under the curve and intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mergeforget.metrics._statistics import auc, auc_interval, mean_interval

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
    ours = auc_interval(members, nonmembers)
    assert ours == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.015)


@pytest.mark.parametrize("values", [[0.0] * 70 + [1.0] * 30, list(np.linspace(0, 1, 100))])
def test_interval_of_a_mean_has_the_normal_width(values: list[float]) -> None:
    error = np.std(values) / np.sqrt(len(values))
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx(
        (np.mean(values) - 1.96 * error, np.mean(values) + 1.96 * error), abs=0.15 * error + 0.01
    )
    assert mean_interval(values) == (low, high)
