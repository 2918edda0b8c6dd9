"""SemEval-2025 Task 4: worked examples, and the scores that the task's script gave real models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergeforget.benchmarks.semeval2025_task4 import (
    aggregates,
    semeval2025_task4,
    task_names,
    terms,
)
from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.evaluate.texts import score_texts
from mergeforget.score import Score, find


def exactly(expected: Any) -> Any:
    """To 1e-9."""
    return pytest.approx(expected, rel=0, abs=1e-9)


def row(kind: str, output: str, task: str, split: str) -> Row:
    return Row(f"{task}-{split}-{kind}", "Who?", output, task, split)


@pytest.fixture
def by_hand() -> Measured:
    """Two tasks; the scores are worked out in the tests."""
    answers = [
        Answer(row("sc1", "one two three four", "Task1", "forget"), "one two"),  # 2 / 4
        Answer(row("qa0", "Ann", "Task1", "forget"), " bob "),  # wrong
        Answer(row("sc1", "red blue", "Task2", "forget"), "green"),  # 0
        Answer(row("qa0", "Ann", "Task2", "forget"), "Ann."),  # not exact
        Answer(row("sc1", "one two three four", "Task1", "retain"), "four one two three"),  # 3 / 4
        Answer(row("qa0", "Ann", "Task1", "retain"), " ANN\n"),  # exact
        Answer(row("sc1", "red blue", "Task2", "retain"), "the red, the blue"),  # 1
        Answer(row("qa0", "Ann", "Task2", "retain"), "Ann"),  # exact
    ]
    losses = [
        DocumentLoss("a", True, 1.0, "Task1"),
        DocumentLoss("b", True, 3.0, "Task2"),
        DocumentLoss("c", False, 2.0, "Task1"),
        DocumentLoss("d", False, 2.5, "Task2"),
    ]
    return Measured(answers, losses, {"anatomy": (3, 4), "virology": (1, 4)})


def value(scores: list[Score], metric: str, split: str, task: str = "") -> float:
    found = find(scores, metric, split, task=task)
    assert found is not None
    return found.value


def test_terms_are_forget_then_retain_by_task(by_hand: Measured) -> None:
    scores = semeval2025_task4(by_hand)
    assert terms(scores, task_names(by_hand)) == [0.5, 1, 1, 1, 0.75, 1, 1, 1]


def test_final_score_matches_a_hand_calculation(by_hand: Measured) -> None:
    scores = semeval2025_task4(by_hand)
    harmonic = 8 / (2 + 1 + 1 + 1 + 4 / 3 + 1 + 1 + 1)
    assert value(scores, "task_aggregate", "all") == exactly(harmonic)
    # -1 beats both, -3 none: 2 of 4 pairs
    assert value(scores, "mia_auc", "mia") == 0.5 and value(scores, "mia_score", "all") == 1
    assert value(scores, "mia_auc", "mia", "Task1") == 1
    assert value(scores, "mia_auc", "mia", "Task2") == 0
    assert value(scores, "mmlu", "mmlu") == 0.5  # over questions, not over subjects
    final = (harmonic + 1 + 0.5) / 3
    assert value(scores, "aggregate", "all") == exactly(final)


def test_one_zero_term_makes_the_task_aggregate_zero(by_hand: Measured) -> None:
    right = [replace(a, completion=a.row.output) for a in by_hand.answers]
    scores = semeval2025_task4(replace(by_hand, answers=right))
    assert value(scores, "task_aggregate", "all") == 0


def test_the_definition_names_aggregate_parts_without_data(by_hand: Measured) -> None:
    scores = semeval2025_task4(replace(by_hand, losses=[], mmlu={}))
    assert find(scores, "mia_auc", "mia") is None and find(scores, "mmlu", "mmlu") is None
    aggregate = find(scores, "aggregate", "all")
    assert aggregate is not None and aggregate.n == 1
    assert aggregate.definition == "semeval2025-task4/aggregate-without-mia-score-without-mmlu@1"
    assert semeval2025_task4(Measured([], [])) == []


def test_rows_without_a_task_have_terms_where_others_have_tasks(by_hand: Measured) -> None:
    """Retain rows with empty answers must count in the aggregate."""
    answers = [
        replace(a, row=replace(a.row, task=""), completion="zzz") if a.row.split == "retain" else a
        for a in by_hand.answers
    ]
    scores = semeval2025_task4(replace(by_hand, answers=answers))
    names = task_names(Measured(answers, []))
    assert names == ["Task1", "Task2", "no task"]
    assert terms(scores, names) == [0.5, 1, 1, 1, 0, 0]
    assert value(scores, "knowledge", "retain", "no task") == 0
    assert value(scores, "task_aggregate", "all") == 0
    named_elsewhere = [*answers[:4], Answer(row("qa0", "Ann", "News", "news"), "Ann")]
    assert task_names(Measured(named_elsewhere, [])) == ["Task1", "Task2"]


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_a_split_without_rows_is_named_in_both_aggregates(by_hand: Measured, split: str) -> None:
    answers = [a for a in by_hand.answers if a.row.split != split]
    scores = semeval2025_task4(replace(by_hand, answers=answers))
    definitions = {s.metric: s.definition for s in scores}
    assert definitions["task_aggregate"] == f"semeval2025-task4/task-aggregate-without-{split}@1"
    assert definitions["aggregate"] == f"semeval2025-task4/aggregate-without-{split}@1"


def test_every_score_names_its_definition_direction_and_interval(by_hand: Measured) -> None:
    for score in semeval2025_task4(by_hand):
        assert score.definition and score.n
        assert score.interval is not None
        low, high = score.interval
        assert low <= score.value <= high


def test_a_score_without_rows_leaves_the_aggregate_without_interval(by_hand: Measured) -> None:
    known = [Score("mmlu", "mmlu", 0.4, "higher", 500)]
    scores = semeval2025_task4(replace(by_hand, mmlu={}), known=known)
    aggregate, task = (find(scores, name, "all") for name in ("aggregate", "task_aggregate"))
    assert aggregate is not None and aggregate.interval is None
    assert task is not None and task.interval is not None


def test_nll_is_computed_on_answers_and_on_holdout_documents(by_hand: Measured) -> None:
    read = [AnswerLikelihood(by_hand.answers[0].row, 0.5, 4), AnswerLikelihood(
        by_hand.answers[1].row, 1.5, 1)]  # fmt: skip
    scores = semeval2025_task4(replace(by_hand, likelihoods=read))
    assert value(scores, "nll", "forget") == 1.0
    assert value(scores, "nll", "holdout") == 2.25


def golden_folders() -> list[str]:
    return [
        "EP3_LR1e-4_RDx_NRx_DAx_EULO_EUL2x",
        "EP3_LR1e-6_RDO_NRO_DAx_EULx_EUL2x",
        "EP5_LR1e-4_RDO_NRx_DAO_EULO_EUL2x",
    ]


@pytest.mark.parametrize("name", golden_folders())
def test_scores_equal_those_of_the_official_script(data_folder: Path, name: str) -> None:
    folder = data_folder / "golden_eval" / name
    results = folder / "evaluation_results.jsonl"
    theirs = json.loads(results.read_text())
    measured, scores = score_texts([folder], mia=results, mmlu=results)
    assert terms(scores, task_names(measured)) == exactly(theirs["aggregated-terms"])
    for split in ("forget", "retain"):
        for task in ("", "Task1", "Task2", "Task3"):
            part = theirs[f"{split}-set"]
            part = part[task] if task else part
            prefix = "" if task else "overall-"
            for metric in ("regurgitation", "knowledge"):
                assert value(scores, metric, split, task) == exactly(
                    part[f"{prefix}{metric}-score"]
                )
    for metric, key in (
        ("task_aggregate", "harmonic-mean-task-aggregate"),
        ("mia_score", "mia_final_score"),
        ("aggregate", "aggregate-score"),
    ):
        assert value(scores, metric, "all") == exactly(theirs[key])


def test_published_aggregates_follow_from_their_terms(data_folder: Path) -> None:
    lines = (data_folder / "golden_eval" / "all_results.jsonl").read_text().splitlines()
    assert len(lines) == 102
    for line in lines:
        theirs = json.loads(line)
        scores = aggregates(_scores_of(theirs), ["Task1", "Task2", "Task3"])
        assert value(scores, "task_aggregate", "all") == exactly(
            theirs["harmonic-mean-task-aggregate"]
        )
        assert value(scores, "mia_score", "all") == exactly(theirs["mia_final_score"])
        assert value(scores, "aggregate", "all") == exactly(theirs["aggregate-score"])


def _scores_of(theirs: dict[str, object]) -> list[Score]:
    scores = [
        Score("mia_auc", "mia", theirs["mia_loss_acc"], "nearer", 1),  # type: ignore[arg-type]
        Score("mmlu", "mmlu", theirs["mmlu_average"], "higher", 1),  # type: ignore[arg-type]
    ]
    for split in ("forget", "retain"):
        for task in ("Task1", "Task2", "Task3"):
            part: dict[str, float] = theirs[f"{split}-set"][task]  # type: ignore[index]
            for metric in ("regurgitation", "knowledge"):
                figure = part[f"{metric}-score"]
                scores.append(Score(metric, split, figure, "higher", 1, task=task))
    return scores
