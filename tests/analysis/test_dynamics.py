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
