"""What progress says of the time that is left."""

from __future__ import annotations

import pytest

from mergeforget.console import Progress, duration


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
    """The line after each step of so many seconds and pieces."""
    shown = []
    for seconds, pieces in steps:
        clock.now += seconds
        bar.advance(pieces)
        shown.append(bar.line())
    return shown


def test_what_loads_before_the_first_piece_is_not_counted_as_pace(clock: Clock) -> None:
    found = lines(clock, Progress("rows", 101), [(30, 1), (1, 10), (2, 10)])
    assert found == ["rows: 1/101", "rows: 11/101, 0:09 left", "rows: 21/101, 0:12 left"]


def test_of_few_pieces_the_first_tells_already(clock: Clock) -> None:
    assert lines(clock, Progress("models", 3), [(60, 1)]) == ["models: 1/3, 2:00 left"]


def test_what_an_earlier_run_did_says_nothing_of_the_pace(clock: Clock) -> None:
    bar = Progress("steps", 100, done=50)
    assert bar.line() == "steps: 50/100"
    assert lines(clock, bar, [(9, 5), (4, 4)]) == [
        "steps: 55/100, 1:21 left",
        "steps: 59/100, 0:41 left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3725, "1:02:05")])
def test_durations_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
