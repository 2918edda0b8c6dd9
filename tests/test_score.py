"""How scores become one number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hmean

from mergeforget.score import Score, find, harmonic_mean, mia_score


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=12))
def test_harmonic_mean_is_scipys(values: list[float]) -> None:
    assert harmonic_mean(values) == pytest.approx(float(hmean(values)), rel=1e-12)


def test_any_zero_gives_zero() -> None:
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0


@pytest.mark.parametrize(("auc", "score"), [(0.5, 1.0), (0.0, 0.0), (1.0, 0.0), (0.501, 0.998)])
def test_mia_score_is_best_at_chance(auc: float, score: float) -> None:
    assert mia_score(auc) == pytest.approx(score)


def test_score_comes_back_from_its_line() -> None:
    score = Score(
        "mia_auc",
        "mia",
        0.48,
        "nearer",
        24,
        part="report",
        interval=(0.3, 0.6),
        chance=0.5,
        target=0.5,
    )
    assert Score.from_dict(score.to_dict() | {"subject": "over"}) == score
    assert find([score], "mia_auc", "mia", part="report") is score
    assert find([score], "mia_auc", "mia") is None
