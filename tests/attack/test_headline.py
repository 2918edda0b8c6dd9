"""The verdict on a model of a run, from stored scores, answers, losses and the control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mergeforget.attack.driver import rows_hash
from mergeforget.attack.headline import (
    CONTROL,
    findings_of,
    keep_verdict,
    measure_control,
    run_verdict,
)
from mergeforget.attack.methods import ATTACKS, QUICK, weaker_arguments
from mergeforget.attack.result import Finding, Result, read_results, write_result
from mergeforget.attack.target import TargetModel
from mergeforget.benchmarks import score
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.paired import auc_difference
from mergeforget.evaluate.rows import of_forget_set
from mergeforget.evaluate.run_models import write_model_scores
from mergeforget.evaluate.texts import read_losses
from mergeforget.evaluate.verdict import NEEDED
from mergeforget.evaluate.verdict_figures import variant_of
from mergeforget.evaluate.worst_case import worst_case, worst_scores
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.metrics.leak_rate import leak_rate
from mergeforget.metrics.mia_auc import mia_auc
from mergeforget.registry import Entry
from mergeforget.run import Run
from mergeforget.score import find, read_scores, write_scores

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


@pytest.mark.parametrize(("finding", "attacked", "state"), [
    ("none found", [12, 12], "FORGOTTEN"), ("none found", [4, 12], "NOT ENOUGH DATA"),
    ("traces", [4, 12], "NOT FORGOTTEN")])  # fmt: skip
def test_attacks_on_a_part_of_the_forget_rows_convict_but_do_not_clear(
    tmp_path: Path, finding: Finding, attacked: list[int], state: str
) -> None:
    run, _ = searched(tmp_path, 0)
    result = Result("prompts", MODEL, finding, "Nothing.", [], settings={"forget_rows": attacked})
    write_result(run.attacks, result)
    verdict = run_verdict(run, MODEL)
    assert verdict.state == state
    if state == "NOT ENOUGH DATA":
        assert "with weaker settings than usual: prompts" in verdict.sentence


@pytest.mark.parametrize(
    ("attack", "given", "weaker"),
    [
        ("relearn", {}, []),
        ("relearn", {"steps": 1}, ["steps"]),
        ("relearn", {"steps": 39}, ["steps"]),
        ("relearn", {"steps": 200, "rank": 32, "on": "both"}, []),
        ("relearn", {"rank": 4}, ["rank"]),
        ("relearn", {"on": "unrelated", "learning_rate": 1e-9}, ["on", "learning_rate"]),
        ("prompts", {"kinds": ["plain"]}, ["kinds"]),
        ("prompts", {"kinds": ["prefix", "plain", "jailbreak"]}, []),
        ("prompts", {"kinds": []}, ["kinds"]),
        ("prompts", {"words": [3]}, ["words"]),
        ("prompts", {"templates": "mine.txt"}, []),
        ("quantise", {"bits": [8]}, ["bits"]),
        ("quantise", {"bits": (8, 4), "group": 64}, []),
        ("quantise", {"group": 8}, ["group"]),
        ("sampling", {"samples": 4, "temperature": 0.1}, ["samples", "temperature"]),
        ("own", {"effort": 3}, ["effort"]),  # no strength is declared
    ],
)
def test_weaker_arguments_convict_but_do_not_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, given: dict[str, Any],
    weaker: list[str],
) -> None:  # fmt: skip
    own = Entry("own", lambda target, *, effort=10: None, "")
    monkeypatch.setitem(ATTACKS._entries, "own", own)
    assert weaker_arguments(attack, given) == weaker
    findings: dict[Finding, str] = {"traces": "traces", "none found": "none found"}
    findings["none found"] = "in part" if weaker else "none found"
    for finding, expected in findings.items():
        result = Result(attack, MODEL, finding, "", [], settings={"given": given})
        assert findings_of([result]) == {attack: expected}
    if attack in NEEDED and weaker:
        run, _ = searched(tmp_path, 0)
        write_result(run.attacks, replace(result, finding="none found"))
        verdict = run_verdict(run, MODEL)
        assert verdict.state == "NOT ENOUGH DATA" and f"usual: {attack}" in verdict.sentence


def test_the_quick_set_clears_and_short_answers_do_not() -> None:
    assert not any(weaker_arguments(name, given) for name, given in QUICK.items())
    for tokens, expected in ((63, "in part"), (64, "none found")):
        settings = {"max_new_tokens": tokens, "usual_tokens": 64}
        result = Result("prompts", MODEL, "none found", "", [], settings=settings)
        assert findings_of([result]) == {"prompts": expected}


def test_the_hash_of_rows_ignores_their_order() -> None:
    rows = people()
    assert rows_hash(rows) == rows_hash(rows[::-1]) != rows_hash(rows[1:])


STATED = {"weights": "w", "base": "b", "data": "d", "forget_rows": [12, 12], "given": {}}


@pytest.mark.parametrize(
    ("earlier", "later", "changed", "kept"),
    [
        ("traces", "none found", {"given": {"steps": 1}}, "traces"),
        ("traces", "none found", {"forget_rows": [4, 12]}, "traces"),
        ("traces", "none found", {}, "traces"),
        ("traces", "no control", {}, "traces"),
        ("traces", "none found", {"weights": "other"}, "none found"),
        ("traces", "none found", {"base": "other"}, "none found"),
        ("traces", "none found", {"data": "other"}, "none found"),
        ("none found", "traces", {"given": {"steps": 1}}, "traces"),
        ("undecided", "none found", {}, "none found"),
        ("undecided", "none found", {"given": {"steps": 200}}, "none found"),
        ("undecided", "none found", {"given": {"steps": 40}}, "undecided"),
        ("undecided", "none found", {"forget_rows": [4, 12]}, "undecided"),
        ("undecided", "no control", {}, "undecided"),
        ("undecided", "traces", {"given": {"steps": 1}}, "traces"),
        ("none found", "undecided", {}, "undecided"),
        ("no power", "none found", {}, "none found"),
    ],
)
def test_a_repeat_on_the_same_weights_erases_no_evidence(
    tmp_path: Path, earlier: Finding, later: Finding, changed: dict[str, Any], kept: Finding
) -> None:
    other = Result("relearn", "other", "none found", "", [])
    one = Result("relearn", MODEL, earlier, "first", [], settings=STATED)
    two = Result("relearn", MODEL, later, "second", [], settings=STATED | changed)
    for result in (other, one, two):
        saved = write_result(tmp_path, result)
    assert [r.finding for r in saved] == ["none found", kept]
    assert read_results(tmp_path, "relearn") == saved


def test_a_single_step_of_relearning_does_not_erase_a_conviction(tmp_path: Path) -> None:
    settings = {"forget_rows": [12, 12]}
    steps = {name: settings | {"given": {"steps": n}} for name, n in (("full", 100), ("one", 1))}
    write_result(tmp_path, Result("prompts", "m", "none found", "", [], settings=settings))
    write_result(tmp_path, Result("relearn", "m", "traces", "", [], settings=steps["full"]))
    assert keep_verdict(tmp_path, "m").state == "NOT FORGOTTEN"
    write_result(tmp_path, Result("relearn", "m", "none found", "", [], settings=steps["one"]))
    assert keep_verdict(tmp_path, "m").state == "NOT FORGOTTEN"


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


PEOPLE = 60
DRAWN = np.random.default_rng(0)
# Forget rows are easier than the holdout raw, and harder in chat, for any model: raw AUC 0.88
RAW = np.r_[DRAWN.normal(-1.6, 1, PEOPLE), DRAWN.normal(0, 1, PEOPLE)]
CHAT = np.r_[DRAWN.normal(1.6, 1, PEOPLE), DRAWN.normal(0, 1, PEOPLE)]
MEMBERS = np.r_[np.ones(PEOPLE), np.zeros(PEOPLE)]


def measured_of(nlls: np.ndarray) -> Measured:
    rows = [Row(f"d{i}", f"Where is {i}?", f"Town number {i * i + 1000}", split="forget")
            for i in range(PEOPLE)]  # fmt: skip
    losses = [DocumentLoss(f"d{i}", i < PEOPLE, float(v)) for i, v in enumerate(nlls)]
    return Measured([Answer(row, "I do not know.") for row in rows], losses)


def aucs(variants: dict[str, Measured]) -> dict[str, float]:
    return {name: mia_auc(one).value for name, one in variants.items()}  # type: ignore[union-attr]


def with_control(folder: Path, model: dict[str, np.ndarray], control: dict[str, np.ndarray]) -> Run:
    """A run whose model and control were measured in several prompt variants."""
    of_model, of_control = (
        {name: measured_of(nlls) for name, nlls in one.items()} for one in (model, control)
    )
    worst, theirs = worst_case(of_model), worst_case(of_control)
    run = with_data(Run(folder), [answer.row for answer in worst.answers])
    by_variant = {name: score("custom", one) for name, one in of_model.items()}
    scores = worst_scores(score("custom", worst), by_variant)
    write_model_scores(run.scores, run.answers, MODEL, worst, scores)
    known = [leak_rate(theirs, "forget"), mia_auc(theirs)]
    write_json(run.attacks / CONTROL, {
        "scores": [one.to_dict() for one in known if one], "leaked_rows": [],
        "losses": [loss.to_dict() for loss in theirs.losses], "membership": "documents",
    })  # fmt: skip
    cleared(run)
    return run


def older(path: Path) -> None:
    """Remove the prompt variants from a file of losses or of the control, as in older versions."""
    names = ("variant", "by_variant")
    if path.suffix == ".jsonl":
        rows = [{k: v for k, v in row.items() if k not in names} for row in read_jsonl(path)]
        write_jsonl(path, rows)
        return
    control = read_json(path)
    losses = [{k: v for k, v in d.items() if k not in names} for d in control["losses"]]
    write_json(path, control | {"losses": losses})


INNOCENT = {"raw": RAW - 0.05 * MEMBERS, "chat": CHAT}  # farthest from 0.5 raw
NEVER = {"raw": RAW, "chat": CHAT + 0.15 * MEMBERS}  # farthest from 0.5 in chat


@pytest.mark.parametrize("old_losses", [False, True])
def test_the_auc_of_the_control_is_that_of_the_same_prompt_variant(
    tmp_path: Path, old_losses: bool
) -> None:
    """The control's own farthest variant is chat with 0.11, and the model's is raw with 0.88."""
    run = with_control(tmp_path, INNOCENT, NEVER)
    if old_losses:  # the variant follows from the AUC by variant in scores.jsonl
        older(run.answers / f"{MODEL}.losses.jsonl")
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and verdict.told_apart
    assert "easier than the holdout for both (MIA AUC 0.88" in verdict.uncertain[0]
    assert "control 0.88, difference +0.01, -0.03 to +0.04" in verdict.uncertain[0]


def test_a_model_with_a_larger_auc_than_the_control_in_its_variant_is_convicted(
    tmp_path: Path,
) -> None:
    guilty = {"raw": RAW - 1.5 * MEMBERS, "chat": CHAT}
    verdict = run_verdict(with_control(tmp_path, guilty, NEVER), MODEL)
    assert verdict.state == "NOT FORGOTTEN" and "control 0.88" in verdict.sentence


def test_the_variant_of_the_report_split_is_compared(tmp_path: Path) -> None:
    """A search judges the AUC of the report split, which may be of another variant than ``all``."""
    run = with_control(tmp_path, INNOCENT, NEVER)
    scores = read_scores(run.scores)
    area = find(scores[MODEL], "mia_auc", "mia")
    assert area is not None and variant_of(area) == "raw"
    chat = replace(area, part="report", value=0.1, interval=(0.05, 0.2),
                   by_variant={"raw": 0.8, "chat": 0.1})  # fmt: skip
    scores[MODEL].append(chat)
    write_scores(run.scores, scores)
    verdict = run_verdict(run, MODEL)
    assert verdict.auc == 0.1 and "control 0.11, difference +0.02" in verdict.uncertain[0]


def test_a_control_of_an_unknown_variant_neither_convicts_nor_clears(tmp_path: Path) -> None:
    guilty = {"raw": RAW - 1.5 * MEMBERS, "chat": CHAT}
    for name, model in (("a", INNOCENT), ("b", guilty)):
        run = with_control(tmp_path / name, model, NEVER)
        older(run.attacks / CONTROL)
        verdict = run_verdict(run, MODEL)
        assert verdict.state == "NOT ENOUGH DATA", verdict.sentence
        assert "not measured with them" in verdict.sentence and "raw prompts" in verdict.sentence


def test_a_control_without_the_variant_of_the_model_neither_convicts_nor_clears(
    tmp_path: Path,
) -> None:
    run = with_control(tmp_path, INNOCENT, {"chat": NEVER["chat"]})
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "NOT ENOUGH DATA" and "with raw prompts" in verdict.sentence


@pytest.mark.parametrize("old", [(), ("control",), ("losses",), ("control", "losses")])
def test_files_of_an_earlier_version_are_compared_if_there_is_one_variant(
    tmp_path: Path, old: tuple[str, ...]
) -> None:
    run = with_control(tmp_path, {"raw": INNOCENT["raw"]}, {"raw": NEVER["raw"]})
    files = {"control": run.attacks / CONTROL, "losses": run.answers / f"{MODEL}.losses.jsonl"}
    for name in old:
        older(files[name])
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "difference +0.01" in verdict.uncertain[0]
    # the control was asked in more variants than the model
    run = with_control(tmp_path / "other", {"raw": INNOCENT["raw"]}, NEVER)
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "difference +0.01" in verdict.uncertain[0]
    older(run.answers / f"{MODEL}.losses.jsonl")
    assert "is not recorded" in run_verdict(run, MODEL).sentence


def test_documents_that_are_equal_in_every_variant_are_compared(tmp_path: Path) -> None:
    run = with_control(tmp_path, {"raw": INNOCENT["raw"]}, {"chat": RAW, "raw": RAW})
    older(run.answers / f"{MODEL}.losses.jsonl")
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "difference +0.01" in verdict.uncertain[0]


def test_aucs_of_different_units_of_membership_are_not_compared(tmp_path: Path) -> None:
    run = with_control(tmp_path, {"raw": RAW - 1.5 * MEMBERS}, {"raw": RAW})
    assert run_verdict(run, MODEL).state == "NOT FORGOTTEN"
    control = read_json(run.attacks / CONTROL)
    write_json(run.attacks / CONTROL, control | {"membership": "answers"})
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "NOT ENOUGH DATA" and "by answers for the control" in verdict.sentence


def test_two_models_are_compared_in_the_same_prompt_variant() -> None:
    variants = [{name: measured_of(nlls) for name, nlls in one.items()}
                for one in (INNOCENT, NEVER)]  # fmt: skip
    one, other = (worst_case(each).losses for each in variants)
    in_raw, in_chat = (
        mia_auc(variants[0][name]).value - mia_auc(variants[1][name]).value  # type: ignore[union-attr]
        for name in ("raw", "chat")
    )
    assert auc_difference(one, other).value == pytest.approx(in_raw)  # type: ignore[union-attr]
    assert auc_difference(other, one).value == pytest.approx(-in_chat)  # type: ignore[union-attr]
    assert auc_difference(one, other, "chat").value == pytest.approx(in_chat)  # type: ignore[union-attr]
    assert auc_difference(one, other, "chat-system") is None
    assert auc_difference(one, variants[1]["chat"].losses) is None  # of an unknown variant
    assert auc_difference(variants[0]["raw"].losses, variants[1]["raw"].losses) is not None


def test_the_control_is_stored_with_its_losses_in_every_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = {name: measured_of(nlls) for name, nlls in NEVER.items()}
    forget = [answer.row for answer in control["raw"].answers]
    holdout = [Row(f"d{i}", f"Where is {i}?", f"Town {i}") for i in range(PEOPLE, 2 * PEOPLE)]

    def measured(_: Any, __: Any, *, template: Any, **___: Any) -> Measured:
        return control[template.name]

    def variants(*_: Any) -> list[Any]:
        return [SimpleNamespace(name=name) for name in NEVER]

    monkeypatch.setattr("mergeforget.attack.headline.measure", measured)
    monkeypatch.setattr("mergeforget.attack.headline.prompt_variants", variants)
    target = SimpleNamespace(
        control=TargetModel("control", "org/model", name="org/model"), forget=forget, retain=[],
        holdout=holdout, membership="documents", seed=0, max_new_tokens=4, batch_tokens=None,
        systems=(), folder=tmp_path / "attacks", template=lambda _: None,
        all_rows={"forget": forget, "retain": [], "holdout": holdout}.__getitem__,
        measured=lambda *arguments: arguments[-1](None, None),
    )  # fmt: skip
    measure_control(target)  # type: ignore[arg-type]
    stored = read_json(tmp_path / "attacks" / CONTROL)
    nlls = [loss["by_variant"] for loss in stored["losses"]]
    assert {loss["variant"] for loss in stored["losses"]} == {"chat"}
    assert [n["raw"] for n in nlls] == pytest.approx(list(NEVER["raw"]))
    assert [n["chat"] for n in nlls] == pytest.approx(list(NEVER["chat"]))
    run = with_control(tmp_path, INNOCENT, NEVER)
    write_json(run.attacks / CONTROL, stored)
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "control 0.88" in verdict.uncertain[0]


def test_losses_keep_their_variants_in_a_file(tmp_path: Path) -> None:
    losses = worst_case({name: measured_of(nlls) for name, nlls in NEVER.items()}).losses
    path = tmp_path / "losses.jsonl"
    write_jsonl(path, [loss.to_dict() for loss in losses])
    again = read_losses(path)
    assert again == losses
    assert [(d.variant, d.by_variant) for d in again] == [(d.variant, d.by_variant) for d in losses]
    write_jsonl(path, [losses[0].to_dict() | {"by_variant": {"raw": "x"}}])
    with pytest.raises(InputError, match="line 1 is damaged"):
        read_losses(path)


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
