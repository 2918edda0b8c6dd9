"""Messages and progress while something runs, on stderr.

Messages go through ``logging.getLogger("mergeforget")``, which prints them on stderr by default;
its level and handlers can be changed as usual. On a terminal progress is a bar; piped into a file
it is a plain line now and then. Anything that ends within two seconds shows nothing.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mergeforget.distributed import is_main

T = TypeVar("T")
QUIET_SECONDS = 2.0  # before this, progress is not worth a line
LINE_SECONDS = 15.0  # between two plain lines
TELLING = 0.05  # share of the work from which the first piece tells how long the rest will take


LOGGER = logging.getLogger("mergeforget")


class _Stderr(logging.Handler):
    """Prints to the ``sys.stderr`` of the moment, which a caller may have redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


if not LOGGER.handlers:  # as transformers and optuna do: visible by default, never printed twice
    LOGGER.addHandler(_Stderr())
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def set_verbosity(level: int) -> None:
    """Show messages from a logging level on; ``logging.DEBUG`` adds the time to each."""
    LOGGER.setLevel(level)
    style = "%(asctime)s %(message)s" if level <= logging.DEBUG else "%(message)s"
    for handler in LOGGER.handlers:
        if isinstance(handler, _Stderr):
            handler.setFormatter(logging.Formatter(style, "%H:%M:%S"))
            handler.setLevel(level)


def say(message: str) -> None:
    """Log a message; of several processes the main one speaks for all."""
    if is_main():
        warned = message.lower().startswith("warning")
        LOGGER.log(logging.WARNING if warned else logging.INFO, "%s", message)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append every message, with the time, to a file while the block runs; ``-q`` does not matter.

    The main process writes the file.
    """
    if not is_main():
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    shown = LOGGER.level
    levels = {other: other.level for other in LOGGER.handlers}
    for other, level in levels.items():  # the logger lets more pass now; the others show as before
        other.setLevel(max(level, shown))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(min(shown, logging.INFO))
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
        LOGGER.setLevel(shown)
        for other, level in levels.items():
            other.setLevel(level)


def shows_progress() -> bool:
    """Whether stderr shows messages that are no warnings: not after ``-q``."""
    return any(
        isinstance(h, _Stderr) and max(h.level, LOGGER.level) <= logging.INFO
        for h in LOGGER.handlers
    )


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
            if shows_progress():
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
