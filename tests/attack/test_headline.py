"""The verdict on a model of a run, from stored scores, answers, losses and the control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mergeforget.attack.headline import CONTROL, run_verdict
from mergeforget.benchmarks import score
from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.run_models import write_model_scores
from mergeforget.files import write_json, write_jsonl
from mergeforget.run import Run

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
