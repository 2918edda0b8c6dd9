"""What a person sees while something runs: messages and progress, on stderr.

On a terminal progress is a bar; piped into a file it is a plain line now and then. Anything that
ends within two seconds shows nothing.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mergeforget.distributed import is_main

T = TypeVar("T")
QUIET_SECONDS = 2.0  # before this, progress is not worth a line
LINE_SECONDS = 15.0  # between two plain lines
TELLING = 0.05  # share of the work from which the first piece tells how long the rest will take


def say(message: str) -> None:
    """Print a message on stderr; of several processes the main one speaks for all."""
    if is_main():
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``75`` becomes ``1:15``; hours are added where there are any."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts work done, and tells how far it is and how long it will take."""

    def __init__(self, label: str, total: int, *, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self.note = ""
        self._first = done  # what an earlier run had done does not count for the speed
        self._start = self._shown = time.monotonic()
        self._paced: tuple[int, float] | None = None  # how far and when the first piece was done
        self._bar: Any = None

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more; ``note`` is shown behind the figures."""
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        self._paced = self._paced or (self.done, now)
        if now - self._start < QUIET_SECONDS:
            return
        if sys.stderr.isatty() and is_main():
            self._draw()
        elif now - self._shown >= LINE_SECONDS:
            self._shown = now
            say(self.line())

    def line(self) -> str:
        """One line: what, how far, time left, note."""
        seconds = self._left()
        left = "" if seconds is None else f", {duration(seconds)} left"
        note = f", {self.note}" if self.note else ""
        return f"{self.label}: {self.done}/{self.total}{left}{note}"

    def _left(self) -> float | None:
        """Seconds, at the pace since the first piece, which may have loaded a model."""
        since, start = self._paced or (self._first, self._start)
        if self.done == since:
            since, start = self._first, self._start
            if self.done - since < max(1, TELLING * (self.total - since)):
                return None
        return (time.monotonic() - start) / (self.done - since) * (self.total - self.done)

    def _draw(self) -> None:
        text = self.line()
        print(f"\r\x1b[2K{text[:150]}", end="", file=sys.stderr, flush=True)
        self._bar = True

    def close(self) -> None:
        """End the bar and say how long it took."""
        spent = time.monotonic() - self._start
        if self._bar:
            print("\r\x1b[2K", end="", file=sys.stderr)
        if spent >= QUIET_SECONDS:
            note = f", {self.note}" if self.note else ""
            say(f"{self.label}: {self.done}/{self.total} in {duration(spent)}{note}")


@contextmanager
def progress(label: str, total: int, *, done: int = 0) -> Iterator[Progress]:
    """A Progress that closes itself."""
    bar = Progress(label, total, done=done)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Iterate over ``items`` with progress."""
    with progress(label, total) as bar:
        for item in items:
            yield item
            bar.advance()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep others' progress bars, and what they will change one day, off stderr."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
