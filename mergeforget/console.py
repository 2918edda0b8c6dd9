"""Messages and progress on stderr, through ``logging.getLogger("mergeforget")``.

The logger prints on stderr by default; its level and handlers can be changed as usual. On a
terminal progress is a bar; written to a file it is a plain line every 15 seconds. Work that ends
within two seconds shows no progress. Control characters in messages are printed as escapes.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mergeforget.distributed import is_main
from mergeforget.parsing import printable

T = TypeVar("T")
QUIET_SECONDS = 2.0  # shorter work shows no progress
LINE_SECONDS = 15.0  # between two plain lines
TELLING = 0.05  # fraction of the work after which the time left is estimated

LOGGER = logging.getLogger("mergeforget")


class _Stderr(logging.Handler):
    """Prints to the current ``sys.stderr``, which a caller may have redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr, flush=True)
        if _displays:
            _displays[-1].printed()


if not LOGGER.handlers:  # as in transformers and optuna: visible by default, printed once
    LOGGER.addHandler(_Stderr())
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


class Display(Protocol):
    """Shows the progress lines of a job in its own way; see :func:`displayed_by`."""

    def show(self, line: str) -> None:
        """Show the line of the work in progress; an empty one where it ended."""

    def printed(self) -> None:
        """Record that a message was printed."""


_displays: list[Display] = []


@contextmanager
def displayed_by(display: Display) -> Iterator[None]:
    """Give progress lines to a display while the block runs, in place of a bar on the terminal."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.remove(display)


def set_verbosity(level: int) -> None:
    """Show messages of at least a logging level; ``logging.DEBUG`` adds the time to each."""
    LOGGER.setLevel(level)
    style = "%(asctime)s %(message)s" if level <= logging.DEBUG else "%(message)s"
    for handler in LOGGER.handlers:
        if isinstance(handler, _Stderr):
            handler.setFormatter(logging.Formatter(style, "%H:%M:%S"))
            handler.setLevel(level)


def say(message: str) -> None:
    """Log a message; only the main process logs."""
    if is_main():
        warned = message.lower().startswith("warning")
        LOGGER.log(logging.WARNING if warned else logging.INFO, "%s", message)


def warn_once(message: str) -> None:
    """Log a warning the first time that it occurs in this process."""
    if message not in _warned:
        _warned.add(message)
        say(f"Warning: {message}")


_warned: set[str] = set()


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append each message with its time to a file inside the block, even with ``-q``.

    The main process writes the file.
    """
    if not is_main():
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8", delay=True, errors="backslashreplace")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    shown = LOGGER.level
    levels = {other: other.level for other in LOGGER.handlers}
    for (
        other,
        level,
    ) in levels.items():  # other handlers keep their level
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


class _OneLine(logging.Formatter):
    """Escape control characters, so that a message cannot imitate another line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\n  ")


def save_details(error: BaseException) -> Path | None:
    """Write the traceback of an unexpected error to a new file in the temporary folder.

    Returns:
        The file; None if it cannot be written.
    """
    text = "".join(traceback.format_exception(error))
    with suppress(OSError):
        number, name = tempfile.mkstemp(prefix="mergeforget-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"mergeforget {' '.join(sys.argv[1:])}\n{text}")
        return Path(name)
    return None


def shows_progress() -> bool:
    """Return whether stderr shows messages below the level of a warning; false with ``-q``."""
    return any(
        isinstance(h, _Stderr) and max(h.level, LOGGER.level) <= logging.INFO
        for h in LOGGER.handlers
    )


def duration(seconds: float) -> str:
    """Format seconds: ``75`` becomes ``1:15``; hours are included if there are any."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Count finished work, and estimate the time left.

    Args:
        at_most: The work may end before ``total``.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, at_most: bool = False) -> None:
        self.label, self.total, self.done = label, total, done
        self._bound = "at most " if at_most else ""
        self.note = ""
        self._first = done  # work of an earlier run, excluded from the rate
        self._start = self._shown = time.monotonic()
        self._paced: tuple[int, float] | None = None  # count and time after the first item
        self._bar: Any = None

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more items; ``note`` is shown after the numbers."""
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        self._paced = self._paced or (self.done, now)
        if _displays:
            _displays[-1].show(self.line())
        if now - self._start < QUIET_SECONDS:
            return
        if sys.stderr.isatty() and is_main():
            if shows_progress() and not _displays:
                self._draw()
        elif now - self._shown >= LINE_SECONDS:
            self._shown = now
            say(self.line())

    def line(self) -> str:
        """Return one line: label, count, time left, note."""
        seconds = self._left()
        left = "" if seconds is None else f", {self._bound}{duration(seconds)} left"
        note = f", {self.note}" if self.note else ""
        return f"{self.label}: {self.done}/{self.total}{left}{note}"

    def _left(self) -> float | None:
        """Return the seconds left, by the rate after the first item, which may load a model."""
        since, start = self._paced or (self._first, self._start)
        if self.done == since:
            since, start = self._first, self._start
            if self.done - since < max(1, TELLING * (self.total - since)):
                return None
        return (time.monotonic() - start) / (self.done - since) * (self.total - self.done)

    def _draw(self) -> None:
        text = self.line()
        print(f"\r\x1b[2K{printable(text)[:150]}", end="", file=sys.stderr, flush=True)
        self._bar = True

    def close(self) -> None:
        """Remove the bar and print the duration."""
        spent = time.monotonic() - self._start
        if _displays:
            _displays[-1].show("")
        if self._bar:
            print("\r\x1b[2K", end="", file=sys.stderr)
        if spent >= QUIET_SECONDS:
            note = f", {self.note}" if self.note else ""
            say(f"{self.label}: {self.done}/{self.total} in {duration(spent)}{note}")


@contextmanager
def progress(label: str, total: int, *, done: int = 0) -> Iterator[Progress]:
    """Yield a Progress that is closed when the block ends."""
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
    """Hide progress bars of transformers and FutureWarnings."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
