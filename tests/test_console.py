"""Progress estimates the time that is left; messages go through logging."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mergeforget.console import (
    LOGGER,
    Progress,
    duration,
    logged_to,
    say,
    set_verbosity,
    shows_progress,
)


class Clock:
    """A clock that a test winds on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def lines(clock: Clock, bar: Progress, steps: list[tuple[float, int]]) -> list[str]:
    """Return the progress line after each step of the given seconds and items."""
    shown = []
    for seconds, pieces in steps:
        clock.now += seconds
        bar.advance(pieces)
        shown.append(bar.line())
    return shown


def test_loading_time_is_excluded_from_the_rate(clock: Clock) -> None:
    found = lines(clock, Progress("rows", 101), [(30, 1), (1, 10), (2, 10)])
    assert found == ["rows: 1/101", "rows: 11/101, 0:09 left", "rows: 21/101, 0:12 left"]


def test_with_few_items_the_first_gives_an_estimate(clock: Clock) -> None:
    assert lines(clock, Progress("models", 3), [(60, 1)]) == ["models: 1/3, 2:00 left"]


def test_work_that_may_end_early_has_an_upper_bound(clock: Clock) -> None:
    bar = Progress("over", 3, at_most=True)
    assert lines(clock, bar, [(60, 1)]) == ["over: 1/3, at most 2:00 left"]


def test_work_of_an_earlier_run_is_excluded_from_the_rate(clock: Clock) -> None:
    bar = Progress("steps", 100, done=50)
    assert bar.line() == "steps: 50/100"
    assert lines(clock, bar, [(9, 5), (4, 4)]) == [
        "steps: 55/100, 1:21 left",
        "steps: 59/100, 0:41 left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3725, "1:02:05")])
def test_durations_are_formatted_for_reading(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_quiet_shows_warnings_only_and_the_log_file_has_every_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = LOGGER.level
    try:
        set_verbosity(logging.WARNING)
        with logged_to(tmp_path / "log.txt"):
            say("over: 5 epochs")
            say("Warning: the pair is on one side")
        say("not in the file")
        assert capsys.readouterr().err == "Warning: the pair is on one side\n"
        lines = (tmp_path / "log.txt").read_text().splitlines()
        assert [line.split(" ", 3)[2:] for line in lines] == [
            ["INFO", "over: 5 epochs"],
            ["WARNING", "Warning: the pair is on one side"],
        ]
        assert not shows_progress()
        set_verbosity(logging.DEBUG)
        say("hello")
        assert capsys.readouterr().err.endswith(" hello\n") and shows_progress()
    finally:
        set_verbosity(level)


def test_the_level_of_the_logger_counts_for_stderr_while_a_log_file_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LOGGER.setLevel(logging.ERROR)
    try:
        with logged_to(tmp_path / "log.txt"):
            say("quiet on stderr")
        assert capsys.readouterr().err == ""
        assert "quiet on stderr" in (tmp_path / "log.txt").read_text()
    finally:
        LOGGER.setLevel(logging.INFO)
    say("shown again")
    assert capsys.readouterr().err == "shown again\n"
