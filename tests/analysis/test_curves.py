"""Scores over a training, and runs side by side."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import HOSTILE

from mergeforget.analysis.dynamics import on_largest_part, run_curves
from mergeforget.analysis.evidence import MissingError, run_scores
from mergeforget.analysis.report import write_comparison
from mergeforget.files import append_jsonl, read_jsonl
from mergeforget.run import Run
from mergeforget.score import Score, find


def test_a_curve_goes_from_the_base_through_every_snapshot(finished: Run) -> None:
    forget = [
        m
        for m in run_curves(finished)
        if (m.side, m.metric, m.split, m.task) == ("over", "knowledge", "forget", "")
    ]
    assert [m.epoch for m in forget] == [0, 0.625, 1.25, 1.875, 2.5, 3.125, 3.75, 4.375, 5]
    assert forget[0].value == 1.0 and forget[-1].value == pytest.approx(0.1)


def test_a_curve_ends_with_the_adapter_where_that_is_later(finished: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(finished.root, tmp_path / "run")))
    last = read_jsonl(run.history)[-1]
    append_jsonl(run.history, [last | {"stage": "over", "step": 999, "epoch": 7.5}])
    over = {m.epoch: m.value for m in run_curves(run)
            if (m.side, m.metric, m.split, m.task) == ("over", "mia_auc", "mia", "")}  # fmt: skip
    assert max(over) == 7.5
    own = on_largest_part(run_scores(run)["over"])
    scored = find([replace(score, part="all") for score in own], "mia_auc", "mia")
    assert scored is not None and over[7.5] == scored.value


def test_scores_on_all_data_are_preferred_to_those_on_a_split() -> None:
    by_split = [
        Score("knowledge", "forget", value, "lower", 10, part=part)
        for part, value in (("all", 0.5), ("report", 0.4), ("choose", 0.6))
    ]
    assert [s.value for s in on_largest_part(by_split)] == [0.5]
    assert [s.value for s in on_largest_part(by_split[1:])] == [0.4]


def test_error_without_scored_snapshots_names_the_evaluate_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="--snapshots"):
        run_curves(Run(tmp_path))


def test_comparison_is_written_as_a_separate_page(tmp_path: Path) -> None:
    scores = {
        f"one: {HOSTILE}": [Score("mia_auc", "mia", 0.5, "nearer", 10)],
        "two: over": [Score("mmlu", "mmlu", 0.25, "higher", 10)],
    }
    write_comparison(scores, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "MIA AUC" in page and "0.250" in page and HOSTILE not in page
    assert "Comparison of 2 models" in page and "default-src 'none'" in page
