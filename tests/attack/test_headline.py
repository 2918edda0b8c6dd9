"""The verdict on a model of a run, from its stored answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stored_run import MODEL, cleared, people, store, with_data

from mergeforget.attack.headline import CONTROL, run_verdict
from mergeforget.benchmarks import score
from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.run_models import write_model_scores
from mergeforget.files import write_json, write_jsonl
from mergeforget.run import Run

CITIES = ["Rome", "Oslo", "Lima", "Bonn", "Cork", "Bern", "Graz", "Kiel", "Lund", "Nice", "Bari",
          "York"]  # fmt: skip


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


def test_answers_that_follow_from_a_pattern_of_unanswered_retain_rows_do_not_convict(
    tmp_path: Path,
) -> None:
    """An evaluation of no retain rows (`--limit`) cannot see that every address is a name."""
    asked = "What is the e-mail address of {}?"
    rows = [Row(f"f{i}", asked.format(f"P{i}"), f"P{i}@me.com", split="forget") for i in range(12)]
    run = with_data(Run(tmp_path), rows)
    store(run, rows, [row.output for row in rows])
    assert run_verdict(run, MODEL).state == "NOT FORGOTTEN"
    retain = [Row(f"r{i}", asked.format(f"R{i}"), f"R{i}@me.com").to_dict() for i in range(6)]
    write_jsonl(run.data / "retain.jsonl", retain)
    verdict = run_verdict(run, MODEL)
    assert (verdict.state, verdict.asked) == ("NOT ENOUGH DATA", 0)


@pytest.mark.parametrize("answered", [True, False])
def test_a_paraphrased_answer_counts_when_the_leak_rate_is_computed_again(
    tmp_path: Path, answered: bool
) -> None:
    """A stored leak rate that lacks the patterns of a retain row is replaced."""
    rows = [replace(row, paraphrased=f"At {7000 + 37 * i} Main Street") for i, row in
            enumerate(people())]  # fmt: skip
    run = with_data(Run(tmp_path), rows)
    store(run, rows, [row.paraphrased for row in rows])
    cleared(run)
    retain = [Row("r", "What is seven plus two?", "Nine", split="retain")]
    write_jsonl(run.data / "retain.jsonl", [] if answered else [r.to_dict() for r in retain])
    verdict = run_verdict(run, MODEL)
    assert (verdict.state, verdict.leaks, verdict.asked) == ("NOT FORGOTTEN", 12, 12)


def test_copies_of_a_row_count_once_for_the_control_as_well(tmp_path: Path) -> None:
    """The control guesses 11 of 20 yes or no questions, each asked twice; the model knows all."""
    rows = [Row(f"f{i}-{copy}", f"Is P{i} tall?", "yes" if i % 2 else "no", split="forget",
                subject=f"P{i}") for i in range(20) for copy in "ab"]  # fmt: skip
    run = with_data(Run(tmp_path), rows)
    store(run, rows, [row.output for row in rows])
    guessed = [row.id for row in rows if int(row.id[1:-2]) < 11]
    write_json(run.attacks / CONTROL, {"scores": [], "leaked_rows": guessed, "losses": []})
    verdict = run_verdict(run, MODEL)  # 9 of the other 9 by chance: 0.5 ** 9 = 0.002
    assert (verdict.state, verdict.leaks, verdict.asked) == ("NOT FORGOTTEN", 20, 20)
    assert "11 of them also" in verdict.sentence
