"""The display of an unlearning job: stages, time left, messages, and a terminal that is redrawn."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mergeforget.api import job as module
from mergeforget.api.job import STAGES, Job, RowSeconds, expected_seconds, seconds_of
from mergeforget.api.unlearn_data import RequestRows
from mergeforget.console import Progress, say
from mergeforget.data.schema import Row
from mergeforget.errors import UsageError
from mergeforget.files import read_json, write_json
from mergeforget.recipe import load_recipe
from mergeforget.run import Run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(Run(tmp_path / "run"), None)


def test_the_time_left_follows_the_pace_of_finished_stages(job: Job) -> None:
    job.expected = {"pair": 100.0, "search": 50.0, "attacks": 30.0}
    assert job.left() is None  # no stage has begun
    job.seconds = {"pair": 200.0}  # twice as long as expected
    job.now, job.begun = "search", time.monotonic() - 40
    assert job.left() == pytest.approx(2 * 50 - 40 + 2 * 30, abs=1)
    job.begun = time.monotonic() - 1000  # a stage that takes longer than expected
    assert job.left() == pytest.approx(2 * 30, abs=1)


def test_stages_are_timed_over_calls_and_their_states_are_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    write_json(run.root / "clock.json", {"data": 5.0})
    job = Job(run, "1s")
    with job.stage("data"):
        pass
    with pytest.raises(KeyError), job.stage("pair"):
        raise KeyError
    assert read_json(run.root / "clock.json")["data"] >= 5.0
    assert (run.state("unlearn-data"), run.state("unlearn-pair")) == ("done", "failed")
    job.start -= 2
    assert job.spent and job.budget(0.5).seconds == 0.5


def test_a_terminal_shows_stage_work_and_measurements(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("mergeforget.console.QUIET_SECONDS", 0.0)
    job.expected = {"pair": 90.0, "search": 60.0}
    job.facts = {"over": "AUC 0.36"}
    with job.shown(), job.stage("pair"):
        bar = Progress("over", 240)
        bar.advance(24, "AUC 0.40")
        say("a message")
        job._live.refresh()
        assert "\r\x1b[2Kover" not in screen.getvalue()  # no separate bar is drawn
        with job.paused():
            assert job._live is None
    text = screen.getvalue()
    assert f"pair (2 of {len(STAGES)})" in text and "about 2:30 left" in text
    assert "over: 24/240" in text and "AUC 0.40" in text and "over: AUC 0.36" in text
    assert text.count("a message") == 1
    assert job._live is None


def test_a_file_gets_a_line_after_a_long_silence(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(module, "SILENCE", 0.2)
    with job.shown(), job.stage("search"):
        job.show("Explore: 2/5")
        time.sleep(1.3)
    assert "search (3 of 7)" in file.getvalue() and "Explore: 2/5" in file.getvalue()
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("limit", ["20", "5parsecs", "0m", "-3m", 0, -1.0, float("nan")])
def test_a_time_limit_without_a_unit_or_a_time_is_refused(limit: Any) -> None:
    """A bare number would be a number of candidates, and limit nothing."""
    with pytest.raises(UsageError, match="is not a time such as"):
        seconds_of(limit)
    assert (seconds_of("90s"), seconds_of(2.5), seconds_of(None)) == (90.0, 2.5, None)


@pytest.mark.parametrize(("rows", "steps"), [(4, 20), (12, 60), (400, 2000)])
def test_the_estimate_counts_the_epochs_of_both_trainings(rows: int, steps: int) -> None:
    """`zjuklab-small` trains over for 12 epochs and under for 8, with four rows per step."""
    forget = [Row(f"f{i}", f"Question {i}?", f"Answer {i}") for i in range(rows)]
    seconds = expected_seconds(load_recipe("zjuklab-small"), RequestRows(forget, forget, [], []),
                               False, RowSeconds(0.0, 1.0))  # fmt: skip
    assert seconds["pair"] == steps * 4 * 3  # a batch of each set
