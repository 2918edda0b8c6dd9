"""How scores become one number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hmean

from mergeforget.errors import InputError
from mergeforget.score import (
    Score,
    find,
    harmonic_mean,
    mia_score,
    read_scores,
    write_scores,
)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=12))
def test_harmonic_mean_equals_that_of_scipy(values: list[float]) -> None:
    assert harmonic_mean(values) == pytest.approx(float(hmean(values)), rel=1e-12)


def test_any_zero_gives_zero() -> None:
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0


@pytest.mark.parametrize(("auc", "score"), [(0.5, 1.0), (0.0, 0.0), (1.0, 0.0), (0.501, 0.998)])
def test_mia_score_is_best_at_chance(auc: float, score: float) -> None:
    assert mia_score(auc) == pytest.approx(score)


def test_a_score_survives_a_round_trip() -> None:
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
    assert Score.from_dict(score.to_dict() | {"model": "over"}) == score
    assert find([score], "mia_auc", "mia", part="report") is score
    assert find([score], "mia_auc", "mia") is None


def test_values_by_prompt_variant_of_an_earlier_version_are_read() -> None:
    values = {"metric": "nll", "split": "forget", "value": 0.5, "better": "higher", "n": 8}
    variants = {"raw": 0.5, "chat": 0.7}
    old = Score.from_dict(values | {"ways": variants})
    assert old.by_variant == variants
    assert old.to_dict()["by_variant"] == variants and "ways" not in old.to_dict()


LINE = {"metric": "mia_auc", "split": "mia", "better": "nearer", "n": 8}


def test_the_last_line_of_a_score_wins_and_an_incomplete_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    rows = [
        {"subject": "over", "value": 0.1, **LINE},  # the key in files of earlier versions
        {"model": "under", "value": 0.7, **LINE},
        {"model": "over", "value": 0.2, **LINE},
        {"model": "over", "value": 0.3, **LINE, "part": "report"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"model": "ov')
    found = read_scores(path)
    assert {m: [s.value for s in every] for m, every in found.items()} == {
        "over": [0.2, 0.3],
        "under": [0.7],
    }
    assert [s.value for s in read_scores(path, "report")["over"]] == [0.3]
    write_scores(path, found)
    assert read_scores(path) == found


@pytest.mark.parametrize(
    "damaged",
    ['{"model": "ov', "[1]", '{"model": "over"}', '{"value": 1}',
     json.dumps({"model": "over", **LINE, "value": None})],
)  # fmt: skip
def test_any_other_damaged_line_of_scores_is_an_error_that_names_it(
    tmp_path: Path, damaged: str
) -> None:
    path = tmp_path / "scores.jsonl"
    good = json.dumps({"model": "over", "value": 0.2, **LINE})
    path.write_text(f"{good}\n{damaged}\n{good}\n")
    with pytest.raises(InputError, match=r"scores\.jsonl, line 2 is not"):
        read_scores(path)
