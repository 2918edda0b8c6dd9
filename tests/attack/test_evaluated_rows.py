"""A model is cleared only by an evaluation of every forget row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stored_run import MODEL, cleared, keep_as_parts, people, said, searched, store, with_data

from mergeforget.attack.headline import CONTROL, run_verdict
from mergeforget.data.schema import Answer
from mergeforget.evaluate.rows import of_forget_set
from mergeforget.files import write_json
from mergeforget.run import Run


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
