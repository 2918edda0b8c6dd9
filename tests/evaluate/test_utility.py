"""The ratio of utility to the model before, and its floor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mergeforget.data.schema import Measured
from mergeforget.errors import UsageError
from mergeforget.evaluate.run_models import utility_ratio
from mergeforget.evaluate.table import below_floor, notes
from mergeforget.metrics.mmlu import mmlu
from mergeforget.recipe import EvaluationSpec
from mergeforget.score import Score


def score(value: float, metric: str = "mmlu", split: str = "mmlu", n: int = 8) -> Score:
    better = "lower" if split == "forget" else "higher"
    return Score(metric, split, value, better, n, definition=f"{metric}@1")  # type: ignore[arg-type]


def test_a_model_below_the_floor_causes_a_warning() -> None:
    ratio = utility_ratio([score(0.371)], [score(0.495)])
    assert ratio is not None and ratio.value == pytest.approx(0.371 / 0.495)
    assert ratio.definition == "utility-ratio/mmlu/mmlu@1"
    text = below_floor("over", ratio, 0.75)
    assert "over keeps 74.9%" in text and "floor of 75%" in text
    assert below_floor("over", ratio, 0.74) == ""
    assert notes(EvaluationSpec(), {"over": [ratio], "base": [score(0.495)]}) == [text]


def test_utility_is_mmlu_or_else_tofus_model_utility() -> None:
    tofu = score(0.3, "model_utility", "all")
    ratio = utility_ratio([tofu], [score(0.6, "model_utility", "all")])
    assert ratio is not None and ratio.value == 0.5
    both = [tofu, score(0.2)]
    ratio = utility_ratio(both, both)
    assert ratio is not None and ratio.definition == "utility-ratio/mmlu/mmlu@1"
    assert utility_ratio([score(1.0, "nll", "all")], []) is None


def test_another_score_can_serve_as_utility() -> None:
    own, before = score(0.2, "verbatim_rouge", "retain"), score(0.8, "verbatim_rouge", "retain")
    forget = score(0.9, "verbatim_rouge", "forget")
    ratio = utility_ratio([forget, own], [forget, before], "verbatim_rouge/retain")
    assert ratio is not None and ratio.value == 0.25
    with pytest.raises(UsageError, match="higher values are not better.*verbatim_rouge/retain"):
        utility_ratio([forget, own], [before], "verbatim_rouge/forget")
    with pytest.raises(UsageError, match="there is no such score.*Did you mean"):
        utility_ratio([own], [before], "verbatim_rogue/retain")


def test_mmlu_with_other_examples_is_not_compared() -> None:
    five = Measured([], [], {"anatomy": (3, 4)})
    none = replace(five, mmlu_shots=0)
    before, now = mmlu(five), mmlu(none)
    assert before is not None and now is not None
    assert before.definition == "mmlu-micro@1" and now.definition == "mmlu-micro-0-shot@1"
    assert utility_ratio([now], [before]) is None
    assert utility_ratio([now], [now]) is not None


def test_scores_on_other_data_are_not_compared() -> None:
    assert utility_ratio([score(0.3)], [score(0.5, n=4)]) is None
    assert utility_ratio([score(0.3)], []) is None
    assert utility_ratio([score(0.0)], [score(0.0)]) is None
