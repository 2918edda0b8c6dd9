"""Areas under the curve and intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mergeforget.data.schema import DocumentLoss, Measured
from mergeforget.metrics._statistics import (
    RESAMPLES,
    auc,
    auc_draws,
    combined_draws,
    interval_of,
    mean_draws,
    mean_score,
    paired_auc_difference,
    paired_difference,
    share_above_draws,
    wilson,
)
from mergeforget.metrics.nll import nll
from mergeforget.score import harmonic_mean

SCORES = st.lists(st.sampled_from([-3.0, -1.5, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=20)


@given(SCORES, SCORES)
def test_auc_equals_scikit_learn(members: list[float], nonmembers: list[float]) -> None:
    labels = [1] * len(members) + [0] * len(nonmembers)
    theirs = roc_auc_score(labels, members + nonmembers)
    assert auc(members, nonmembers) == pytest.approx(theirs, abs=1e-12)


def test_auc_matches_a_hand_calculation() -> None:
    # pairs: 2>1, 2>2 is a tie, 0<1, 0<2: (1 + .5) / 4
    assert auc([2, 0], [1, 2]) == 0.375


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


def test_a_combined_score_resamples_the_rows_of_its_parts() -> None:
    draw = np.random.default_rng(2)
    first, second = draw.uniform(0.2, 0.9, 80), draw.uniform(0.4, 1, 50)
    plain = [
        2 / (1 / draw.choice(first, 80).mean() + 1 / draw.choice(second, 50).mean())
        for _ in range(4000)
    ]
    parts = [mean_draws(first.tolist(), seed=1), mean_draws(second.tolist(), seed=2)]
    ours = interval_of(combined_draws(parts, harmonic_mean))
    assert ours == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.01)


def test_scores_by_row_resample_the_same_rows() -> None:
    """A yes or no that follows from a number must rise and fall with it from draw to draw."""
    values = np.random.default_rng(3).uniform(0, 1, 120)
    number, yes = (
        mean_score("m", "retain", kind.tolist(), "higher", by_row=True)
        for kind in (values, (values > 0.5).astype(float))
    )
    assert number is not None and yes is not None
    assert number.draws is not None and yes.draws is not None
    assert np.corrcoef(number.draws, yes.draws)[0, 1] > 0.8


def test_a_combined_score_without_one_part_has_no_interval() -> None:
    assert combined_draws([mean_draws([0.1, 0.2]), None], harmonic_mean) is None
    assert combined_draws([], harmonic_mean) is None


def test_scores_of_the_same_rows_share_their_bootstrap_draws() -> None:
    values = np.random.default_rng(3).uniform(0, 1, 40).tolist()
    same, again, other = (
        mean_score("m", "retain", values, "higher", kind=kind) for kind in ("qa", "qa", "sc")
    )
    assert same is not None and again is not None and other is not None
    assert same.draws is not None and again.draws is not None and other.draws is not None
    assert (same.draws == again.draws).all() and len(same.draws) == RESAMPLES
    assert abs(np.corrcoef(same.draws, other.draws)[0, 1]) < 0.2


def subjects_of(groups: int, size: int) -> list[str]:
    return [str(i) for i in range(groups) for _ in range(size)]


def normal(draw: np.random.Generator, groups: int, size: int, correlation: float) -> np.ndarray:
    """Standard normal values; rows of one subject are correlated."""
    shared = np.repeat(draw.standard_normal(groups), size)
    own = draw.standard_normal(groups * size)
    return np.asarray(np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)


@pytest.mark.parametrize("area", [0.5, 0.7, 0.85, 0.95])
@pytest.mark.parametrize(("size", "correlation"), [(1, 0.0), (5, 0.3), (5, 0.8)])
def test_intervals_of_an_auc_cover_the_truth_for_6_and_16_subjects(
    area: float, size: int, correlation: float
) -> None:
    draw, shift, covered, runs = np.random.default_rng(5), np.sqrt(2) * norm.ppf(area), 0, 400
    subjects = subjects_of(6, size), subjects_of(16, size)
    for _ in range(runs):
        members = normal(draw, 6, size, correlation) + shift
        found = auc_draws(members, normal(draw, 16, size, correlation), subjects=subjects)
        low, high = np.percentile(found, [2.5, 97.5])
        covered += low <= area <= high
    assert covered / runs >= 0.92


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize(("groups", "size"), [(6, 1), (6, 5), (16, 1), (16, 5)])
def test_intervals_of_a_share_cover_the_truth(share: float, groups: int, size: int) -> None:
    draw, covered, runs, subjects = np.random.default_rng(6), 0, 400, subjects_of(groups, size)
    for _ in range(runs):
        # beta with (1 - c) / c = 7 / 3: rows of one subject have a correlation of c = 0.3
        own = draw.beta(share * 7 / 3, (1 - share) * 7 / 3, groups) if size > 1 else share
        values = draw.random(groups * size) < np.repeat(own, size)
        low, high = np.percentile(mean_draws(values, subjects=subjects), [2.5, 97.5])
        covered += low <= share <= high
    assert covered / runs >= 0.92


def test_one_row_has_an_interval_only_if_its_values_are_bounded() -> None:
    loss = mean_score("nll", "forget", [5.0], "higher", bounded=False)
    assert loss is not None and loss.interval is None  # not 5 to 5, as if it were exact
    share = mean_score("exact_match", "forget", [1.0], "lower")
    assert share is not None and share.interval is not None and share.interval[0] < 0.05


def test_the_interval_of_a_likelihood_does_not_allow_probabilities_above_one() -> None:
    losses = [DocumentLoss(f"d{i}", True, value) for i, value in enumerate([0.001, 0.002, 0.9])]
    score = nll(Measured([], losses), "forget")
    assert score is not None and score.interval is not None
    assert score.interval[0] == 0 and score.interval[1] > 0.9


def test_intervals_of_a_mean_cover_the_truth_where_rows_are_clustered() -> None:
    draw, covered, subjects = np.random.default_rng(7), 0, subjects_of(6, 5)
    for _ in range(400):
        values = 3 + normal(draw, 6, 5, 0.5)
        found = mean_draws(values, subjects=subjects, bounded=False)
        low, high = np.percentile(found, [2.5, 97.5])
        covered += low <= 3 <= high
    assert covered / 400 >= 0.92


@pytest.mark.parametrize("values", [[1.0] * 6, [0.0] * 6])
def test_a_share_of_zero_or_one_has_an_interval_of_positive_width(values: list[float]) -> None:
    score = mean_score("m", "forget", values, "lower")
    assert score is not None and score.interval is not None
    low, high = score.interval
    assert low <= score.value <= high and high - low > 0.3
    # Wilson for 6 of 6 by hand: n / (n + z^2), z = t(5) = 2.571: 6 / (6 + 6.608) = 0.476
    assert high - low == pytest.approx(1 - 0.476, abs=0.01)
    perfect = interval_of(auc_draws([1.0] * 6, [0.0] * 16))
    assert perfect is not None and perfect[0] < 0.85 and perfect[1] == 1.0
    certain = interval_of(share_above_draws([1.0] * 6, [0.0] * 16, 0))
    assert certain is not None and certain[0] < 0.6 and certain[1] == 1.0


def test_wilson_interval_matches_a_hand_calculation() -> None:
    # p = .5, n = 4, z = 2: centre (.5 + 4/8) / 2 = .5, reach 2 * sqrt(1/16 + 1/16) / 2 = .3536
    assert wilson(0.5, 4, np.array([-2.0, 2.0])) == pytest.approx([0.1464, 0.8536], abs=1e-4)


def test_rows_of_one_subject_do_not_narrow_an_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    copied = [v for v in values for _ in range(50)]
    once = interval_of(mean_draws(values))
    often = interval_of(mean_draws(copied, subjects=subjects_of(6, 50)))
    assert often == pytest.approx(once, abs=0.03)


def test_intervals_of_doubled_data_equal_those_of_the_data_once() -> None:
    draw = np.random.default_rng(11)
    members, others = draw.normal(0.5, 1, 9), draw.normal(0, 1, 20)
    names = subjects_of(9, 1), subjects_of(20, 1)
    doubled = subjects_of(9, 2), subjects_of(20, 2)
    twice, both = np.repeat(members, 2), np.repeat(others, 2)
    yes, yes_twice = members > 0.5, np.repeat(members > 0.5, 2)
    pairs = [
        (mean_draws(yes, subjects=names[0]), mean_draws(yes_twice, subjects=doubled[0])),
        (mean_draws(members, bounded=False), mean_draws(twice, subjects=doubled[0], bounded=False)),
        (auc_draws(members, others), auc_draws(twice, both, subjects=doubled)),
        (share_above_draws(members, others, 1),
         share_above_draws(twice, both, 2, subjects=doubled)),
    ]  # fmt: skip
    for once, often in pairs:
        assert interval_of(often) == pytest.approx(interval_of(once), abs=1e-9)


def test_differences_of_two_models_on_the_same_documents_are_paired() -> None:
    draw, covered, widths, runs = np.random.default_rng(8), 0, [], 300
    subjects = subjects_of(6, 5), subjects_of(16, 5)
    truth = 0.8 - 0.6
    for _ in range(runs):
        members, others = normal(draw, 6, 5, 0.5), normal(draw, 16, 5, 0.5)
        one = members + np.sqrt(2) * norm.ppf(0.8), others
        mixed = [0.9 * v + np.sqrt(1 - 0.81) * normal(draw, len(v) // 5, 5, 0.5) for v in one]
        other = mixed[0] + np.sqrt(2) * (norm.ppf(0.6) - 0.9 * norm.ppf(0.8)), mixed[1]
        _, (low, high) = paired_auc_difference(one, other, subjects)
        covered += low <= truth <= high
        widths.append(high - low)
    assert covered / runs >= 0.92
    assert np.mean(widths) < 0.3  # two intervals of 0.3 each would give 0.42


def test_paired_differences_of_shares_cover_the_truth() -> None:
    draw, covered, runs = np.random.default_rng(9), 0, 400
    for _ in range(runs):
        first = draw.random(16) < 0.8
        second = first & (draw.random(16) < 0.75)  # 0.6
        _, (low, high) = paired_difference(first, second)
        covered += low <= 0.2 <= high
    assert covered / runs >= 0.92
    value, (low, high) = paired_difference([1.0] * 6, [1.0] * 6)
    assert value == 0 and low < -0.1 and high > 0.1
