"""Curves of a training and the events that are read from them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mergeforget.analysis.dynamics import events_of, run_dynamics, running_mean, stage_of
from mergeforget.analysis.evidence import MissingError, read_history
from mergeforget.cli import main
from mergeforget.files import append_jsonl
from mergeforget.recipe import load_recipe, save_recipe
from mergeforget.run import Run

RECIPE = load_recipe("zjuklab")


def rows(npo: list[float], gd: list[float]) -> list[dict[str, Any]]:
    """One step per epoch, so that nothing is smoothed."""
    return [
        {"step": i + 1, "epoch": i + 1.0, "loss": f + g, "terms": {"npo_forget": f, "gd_retain": g}}
        for i, (f, g) in enumerate(zip(npo, gd, strict=True))
    ]


def test_running_mean_matches_a_hand_calculation() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0])
    np.testing.assert_allclose(running_mean(values, 3), [2.0, 2.0, 4.0, 5.0])
    np.testing.assert_allclose(running_mean(values, 1), values)


def test_forgetting_saturates_where_it_stays_near_its_last_level() -> None:
    """From 10 to 0: within 5 % of that way, 0.5, from the fourth step on."""
    stage = stage_of("over", rows([10, 4, 1, 0.4, 0.1, 0], [1] * 6), RECIPE)
    (event,) = events_of(stage)
    assert (event.kind, event.term, event.step, event.epoch) == ("saturation", "npo_forget", 4, 4)


def test_a_term_that_still_falls_at_the_end_has_not_saturated() -> None:
    assert events_of(stage_of("over", rows([10, 8, 6, 4, 2, 0], [1] * 6), RECIPE)) == []


def test_retention_drifts_where_it_stays_above_its_lowest_level() -> None:
    """Lowest 1.0; above 1.1 to the end from the fourth step on."""
    stage = stage_of("over", rows([10, 8, 6, 4, 2, 0], [1.3, 1.0, 1.05, 1.2, 1.3, 1.5]), RECIPE)
    (event,) = events_of(stage)
    assert (event.kind, event.term, event.step) == ("drift", "gd_retain", 4)


def test_a_retain_loss_one_nat_above_its_initial_value_is_a_collapse() -> None:
    stage = stage_of("over", rows([10, 8, 6, 4, 2, 0], [0.5, 0.5, 1.6, 2, 3, 4]), RECIPE)
    assert {(e.kind, e.step) for e in events_of(stage)} == {("drift", 3), ("collapse", 3)}


def test_a_temporary_rise_is_a_dip() -> None:
    stage = stage_of("over", rows([10, 8, 6, 4, 2, 0], [0.5, 1.6, 1.7, 0.6, 0.5, 0.5]), RECIPE)
    (event,) = events_of(stage)
    assert (event.kind, event.step) == ("dip", 2) and "to 3 and recovers" in event.text


def test_a_negligible_rise_is_not_reported_as_drift() -> None:
    """Three times the lowest level, but two hundredths of a nat."""
    assert (
        events_of(stage_of("over", rows([10, 8, 6, 4, 2, 0], [0.01] * 3 + [0.03] * 3), RECIPE))
        == []
    )


def test_terms_enter_the_loss_with_the_weights_of_the_recipe() -> None:
    over = stage_of("over", rows([10.0], [1.0]), RECIPE)
    under = stage_of("under", rows([10.0], [1.0]), RECIPE)
    assert over.weighted("npo_forget")[0] == 4.0 and under.weighted("npo_forget")[0] == 3.0


def test_weighted_terms_add_up_to_the_loss_where_a_training_changes_weights() -> None:
    """``until`` multiplies retain terms after a check, and ``dual`` changes one in every step."""
    level = load_recipe("level")
    losses = {"level_forget": 2.0, "gd_retain": 0.5, "hold_held": 0.1}
    history = [
        {"step": i + 1, "epoch": i + 1.0, "loss": 2.0 + 5 * factor * 0.5 + 3 * 0.1, "terms": losses}
        for i, factor in enumerate([1.0, 1.0, 8.0, 8.0, 1.0])
    ]
    history[1]["until"] = {"step": 2, "retain_factor": 8.0}
    history[3]["until"] = {"step": 4, "retain_factor": 1.0}
    stage = stage_of("over", history, level)
    weighted = sum(stage.weighted(label) for label in losses)
    np.testing.assert_allclose(weighted, stage.loss)
    assert stage.weight_range("gd_retain") == "5 to 40" and stage.weight_range("hold_held") == "3"

    pdu = load_recipe("pdu")
    (weight,) = (t.weight for t in pdu.training("over").objective if t.on == "forget")
    terms = {"pdu_forget": 1.0, "gd_retain": 0.5}
    history = [
        {"step": i + 1, "epoch": i + 1.0, "loss": weight + w / 2, "terms": terms, "dual_weight": w}
        for i, w in enumerate([100.0, 101.0, 99.5])
    ]
    stage = stage_of("train", history, pdu)
    np.testing.assert_allclose(sum(stage.weighted(label) for label in terms), stage.loss)


def test_a_single_training_has_the_weights_of_its_recipe() -> None:
    recipe = load_recipe("pdu")
    assert recipe.train is not None
    for term in recipe.train.objective:
        stage = stage_of("adapter", [{"step": 1, "epoch": 1, "terms": {term.label: 2.0}}], recipe)
        assert stage.weighted(term.label)[0] == 2.0 * term.weight
    [event] = events_of(stage_of("adapter", rows([1.0] * 3, [0.5, 2, 3]), recipe))[1:]
    assert event.kind == "collapse"


def test_steps_that_measure_the_other_set_do_not_hide_a_collapse() -> None:
    """With alternating batches, the last step may have no retain rows: that is no recovery."""
    nan = float("nan")
    every = {
        "collapse": [0.5, nan, 2.0, nan, 3.0, nan, 4.0, nan],
        "dip": [nan, 0.5, nan, 2.0, nan, 0.5, nan, 0.5],
    }
    for kind, gd in every.items():
        history = rows([nan if g == g else 9.0 for g in gd], gd)
        for i, row in enumerate(history):
            row["epoch"] = (i + 1) / 2
            row["terms"] = {k: v for k, v in row["terms"].items() if v == v}
        kinds = [e.kind for e in events_of(stage_of("over", history, RECIPE))]
        assert kind in kinds and ("drift" in kinds) is (kind == "collapse"), (kind, kinds)


def test_a_step_that_was_repeated_after_a_resume_counts_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    append_jsonl(run.history, [{"stage": "over", "step": 1, "loss": 9.0}])
    append_jsonl(run.history, [{"stage": "over", "step": s, "loss": 1.0 * s} for s in (1, 2)])
    assert [r["loss"] for r in read_history(run)["over"]] == [1.0, 2.0]


def test_error_without_training_names_the_training_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="train-pair"):
        read_history(Run(tmp_path))


def test_two_runs_are_compared_in_one_figure(finished: Run, tmp_path: Path) -> None:
    """NPO alone has no retain term, and is drawn where it has one."""
    alone = Run(tmp_path / "alone")
    save_recipe(load_recipe("npo"), alone.recipe)
    steps = [{"stage": "adapter", "step": i, "epoch": i / 4, "loss": 9.0 / i,
              "terms": {"npo_forget": 9.0 / i}, "grad_norm": 2.0} for i in range(1, 9)]  # fmt: skip
    append_jsonl(alone.history, steps)
    call = ["analyze", str(finished.root), "dynamics", "--against", str(alone.root)]
    done = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (
        "In alone: adapter, npo_forget changes from 6.75 to 1.12" in done.stdout
    )  # (9 + 4.5) / 2, 9 / 8
    rows = list(csv.DictReader((tmp_path / "out" / "dynamics-against.csv").open()))
    assert {r["training"] for r in rows} == {"finished: over", "finished: under", "alone: adapter"}
    assert (tmp_path / "out" / "dynamics-against.svg").exists()


def test_only_trainings_can_be_compared(finished: Run) -> None:
    call = ["analyze", str(finished.root), "mia", "--against", str(finished.root)]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 2 and "dynamics --against RUN2" in done.stderr


def test_a_run_has_its_stages_in_order(finished: Run) -> None:
    assert [s.name for s in run_dynamics(finished)] == ["memorise", "over", "under"]
