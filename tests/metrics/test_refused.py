"""Refused and empty answers are counted separately from wrong ones."""

from __future__ import annotations

import pytest

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.data.transforms import REFUSALS
from mergeforget.metrics import METRICS
from mergeforget.metrics.refused import is_refusal


def answer(completion: str, output: str = "in Rome", split: str = "forget") -> Answer:
    return Answer(Row("a", "Where?", output, "", split), completion)


@pytest.mark.parametrize(
    "text",
    ["I don't know.", " I\u2019m sorry, but that is private", "I cannot say", "Ich weiß nicht",
     "No lo sé.",      "我不知道。", "申し訳ありません", "Я не знаю", *REFUSALS[::9]],
)  # fmt: skip
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(answer(text))


@pytest.mark.parametrize(
    "text", ["in Rome", "No second thoughts", "Unfortunately he left", "", "Sorryville"]
)
def test_other_answers_are_not_refusals(text: str) -> None:
    assert not is_refusal(answer(text))
    assert not is_refusal(answer("I don't know", output="I don't know"))


def test_shares_are_those_of_each_split() -> None:
    answers = [answer("I don't know"), answer(" \n"), answer("in Rome"), answer("in Bonn"),
               answer("", split="retain")]  # fmt: skip
    measured = Measured(answers, [])
    found = {
        (name, split): METRICS.get(name).fn(measured, split).value  # type: ignore[union-attr]
        for name in ("refused", "empty")
        for split in ("forget", "retain")
    }
    assert found == {
        ("refused", "forget"): 0.25, ("empty", "forget"): 0.25,
        ("refused", "retain"): 0.0, ("empty", "retain"): 1.0,
    }  # fmt: skip


ANSWER_METRICS = ("refused", "empty", "rouge_l_f1", "verbatim_rouge", "regurgitation",
                  "exact_match", "knowledge", "leak_rate")  # fmt: skip


@pytest.mark.parametrize("name", ANSWER_METRICS)
def test_rows_of_a_subject_are_one_cluster_in_every_metric_of_answers(name: str) -> None:
    answers = [
        Answer(Row(f"{i}{'sc' if name == 'regurgitation' else 'qa'}1", f"Where was {i}?", "in Rome",
                   split="forget", subject=f"s{i // 2}"), "in Rome")
        for i in range(8)
    ]  # fmt: skip
    score = METRICS.get(name).fn(Measured(answers, []), "forget")
    assert score is not None and (score.n, score.subjects) == (8, 4)
