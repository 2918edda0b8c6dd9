"""The verdict on a model of a run, from stored scores, answers, losses and the control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mergeforget.attack.headline import CONTROL, run_verdict
from mergeforget.attack.result import Result, write_result
from mergeforget.benchmarks import score
from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.rows import of_forget_set
from mergeforget.evaluate.run_models import write_model_scores
from mergeforget.evaluate.verdict import NEEDED
from mergeforget.files import write_json, write_jsonl
from mergeforget.run import Run
from mergeforget.score import read_scores, write_scores

MODEL = "ties-factors-d0.50"
CITIES = ["Rome", "Oslo", "Lima", "Bonn", "Cork", "Bern", "Graz", "Kiel", "Lund", "Nice", "Bari",
          "York"]  # fmt: skip


def store(run: Run, rows: Sequence[Row], said: Sequence[str], name: str = MODEL) -> None:
    """Write the scores and answers of a model as `mergeforget evaluate` does."""
    answers = [Answer(row, text) for row, text in zip(rows, said, strict=True)]
    measured = Measured(answers, [])
    write_model_scores(run.scores, run.answers, name, measured, score("custom", measured))


def with_data(run: Run, rows: Sequence[Row]) -> Run:
    """Write the forget rows of a run."""
    write_jsonl(run.data / "forget.jsonl", [row.to_dict() for row in rows])
    return run


@pytest.mark.parametrize("right", [6, 12])
def test_an_answer_that_is_in_its_own_prompt_convicts_no_model(tmp_path: Path, right: int) -> None:
    """The model always picks the first option, as a control that never saw the rows does."""
    rows = [Row(f"f{i}", f"City of P{i}: Oslo or Rome?", "Oslo" if i < right else "Rome",
                split="forget") for i in range(12)]  # fmt: skip
    run = with_data(Run(tmp_path), rows)
    store(run, rows, ["Oslo"] * 12)
    write_json(run.attacks / CONTROL, {"scores": [], "leaked_rows": [], "losses": []})
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "NOT ENOUGH DATA" and verdict.asked == 0
    assert "None of the 12 forget answers can be counted" in verdict.sentence


def test_a_leak_rate_that_was_not_stored_is_computed_from_the_answers(tmp_path: Path) -> None:
    rows = [Row(f"f{i}", f"Where does P{i} live?", city, split="forget")
            for i, city in enumerate(CITIES)]  # fmt: skip
    run = with_data(Run(tmp_path), rows)
    answers = [Answer(row, f"In {row.output}, I think.") for row in rows]
    exact = [s for s in score("custom", Measured(answers, [])) if s.metric != "leak_rate"]
    write_model_scores(run.scores, run.answers, MODEL, Measured(answers, []), exact)
    verdict = run_verdict(run, MODEL)
    assert (verdict.state, verdict.leaks, verdict.asked) == ("NOT FORGOTTEN", 12, 12)


def people() -> list[Row]:
    return [Row(f"f{i}", f"Where does P{i} live?", f"House number {7000 + 37 * i}", split="forget")
            for i in range(12)]  # fmt: skip


def said(rows: Sequence[Row], right: int) -> list[str]:
    return [row.output if i < right else "I do not know." for i, row in enumerate(rows)]


def cleared(run: Run) -> None:
    """Write results of the required attacks that clear the model."""
    for name in NEEDED:
        write_result(run.attacks, Result(name, MODEL, "none found", "Nothing.", []))


def keep_as_parts(run: Run, name: str = MODEL) -> None:
    """Store the scores of a model as those of a search: on all rows and on both splits."""
    scores = read_scores(run.scores)
    scores[name] += [replace(s, part=part) for s in scores[name] for part in ("choose", "report")]
    write_scores(run.scores, scores)


def searched(folder: Path, right: int) -> tuple[Run, list[Row]]:
    """A run whose chosen model was measured on 12 forget rows; the base knew all of them."""
    rows = people()
    run = with_data(Run(folder), rows)
    store(run, rows, said(rows, right))
    store(run, rows, said(rows, 12), "base")
    keep_as_parts(run)
    cleared(run)
    return run, rows


def test_a_model_that_was_evaluated_on_every_forget_row_is_cleared(tmp_path: Path) -> None:
    run, _ = searched(tmp_path, 0)
    verdict = run_verdict(run, MODEL)
    assert (verdict.state, verdict.leaks, verdict.asked) == ("FORGOTTEN", 0, 12)


@pytest.mark.parametrize("count", [1, 11])
def test_a_later_evaluation_of_fewer_forget_rows_clears_no_model(
    tmp_path: Path, count: int
) -> None:
    run, rows = searched(tmp_path, 0)
    store(run, rows[:count], said(rows, 0)[:count])
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "NOT ENOUGH DATA"
    assert f"Only {count} of 12 forget rows w" in verdict.sentence


@pytest.mark.parametrize("parts", [True, False])
def test_without_a_full_measurement_fewer_rows_clear_no_model(tmp_path: Path, parts: bool) -> None:
    rows = people()
    run = with_data(Run(tmp_path), rows)
    store(run, rows, said(rows, 12), "base")
    store(run, rows[:3], said(rows, 0)[:3])
    if parts:
        keep_as_parts(run)
    cleared(run)
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "NOT ENOUGH DATA" and "Only 3 of 12 forget rows" in verdict.sentence


def test_answers_revealed_to_all_rows_convict_after_an_evaluation_of_fewer(tmp_path: Path) -> None:
    run, rows = searched(tmp_path, 6)
    store(run, rows[-1:], ["I do not know."])
    verdict = run_verdict(run, MODEL)
    assert (verdict.state, verdict.leaks, verdict.asked) == ("NOT FORGOTTEN", 6, 12)
    # the rows that the control reveals may be the six whose answers are not stored any more
    write_json(run.attacks / CONTROL, {"scores": [], "leaked_rows": [f"f{i}" for i in range(6)]})
    assert run_verdict(run, MODEL).state == "NOT ENOUGH DATA"
    write_json(run.attacks / CONTROL, {"scores": [], "leaked_rows": ["f0"]})
    assert run_verdict(run, MODEL).state == "NOT FORGOTTEN"


def test_answers_revealed_to_fewer_rows_convict(tmp_path: Path) -> None:
    run, rows = searched(tmp_path, 0)
    store(run, rows[:2], said(rows, 2)[:2])
    verdict = run_verdict(run, MODEL)
    assert (verdict.state, verdict.leaks, verdict.asked) == ("NOT FORGOTTEN", 2, 2)


@pytest.mark.parametrize(("right", "state"), [(0, "NOT ENOUGH DATA"), (6, "NOT FORGOTTEN")])
def test_an_evaluation_of_other_rows_as_forget_rows_neither_convicts_nor_clears(
    tmp_path: Path, right: int, state: str
) -> None:
    """The model reveals 12 rows that were not to be forgotten, such as retain rows."""
    run, rows = searched(tmp_path, right)
    others = [replace(row, input=f"{row.input} Now?", output=f"Box {i * i + 5000}")
              for i, row in enumerate(rows)]  # fmt: skip
    store(run, others, said(others, 12))
    verdict = run_verdict(run, MODEL)
    assert (verdict.state, verdict.leaks, verdict.asked) == (state, right, 12)
    assert "Only 0 of 12 forget rows were evaluated" in " ".join(
        [*verdict.reasons, *verdict.uncertain]
    )


def test_rows_with_other_ids_and_truncated_answers_count_as_evaluated(tmp_path: Path) -> None:
    rows = people()
    path = with_data(Run(tmp_path), rows).data / "forget.jsonl"
    renamed = [replace(row, id=f"other{i}", input=row.input.upper()) for i, row in enumerate(rows)]
    cut = [replace(row, output=row.output[:4]) for row in rows]
    for asked in (rows, renamed, cut):
        answers = [Answer(row, "no") for row in asked]
        assert of_forget_set(path, answers) == (answers, (12, 12))
        assert of_forget_set(path, answers[1:])[1] == (11, 12)
    copies = [*rows, replace(rows[0], id="copy")]  # excluded from an evaluation
    with_data(Run(tmp_path), copies)
    assert of_forget_set(path, [Answer(row, "no") for row in rows])[1] == (12, 12)
    assert of_forget_set(tmp_path / "none.jsonl", [])[1] is None
