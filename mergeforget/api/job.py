"""Stages of an unlearning job: expected, spent and remaining time, the limit, the live display."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeforget.errors import UsageError

if TYPE_CHECKING:
    from mergeforget.api.unlearn_data import RequestRows
    from mergeforget.data.tokens import Encoded
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run
    from mergeforget.search.budget import SearchBudget

STAGES = ("data", "pair", "search", "attacks", "earlier requests", "report", "export")
REDRAWN = 0.5  # seconds between two frames on a terminal
SILENCE = 30.0  # seconds without a message after which a line states the stage and the time left
PACE = (0.25, 4.0)  # bounds of measured over expected seconds
TUNING = 2.0  # passes of a row in fine-tuning whose cost is that of weight gradients and AdamW
LEARNED = 0.8  # share of the epochs that memorising takes if it ends at a loss
ASKING = 2.3  # ratio of the time of an evaluation to that of its likelihoods
ATTACKS = ("prompts", "quantise", "relearn")  # whose time is estimated
PROMPTS = 190  # passes of a row per forget row, in `prompts`; measured with ten rows
ROUNDED = 50  # passes per row in `quantise`, which measures three models with three widths
RELEARNED = 18  # passes per row in the checks of `relearn`, of two models
BATCH_ROWS = 4  # rows of a batch whose time is measured


class Job:
    """Measures the time of a job's stages over all calls, and displays its progress.

    On a terminal, three lines are redrawn twice a second: the stage with the time spent and left,
    the work in progress, and the measurements of finished stages. Otherwise each stage prints a
    line when it starts, and another one if nothing was printed for half a minute.

    Args:
        limit: Seconds, or a time such as ``"30m"``; None for no limit.

    Attributes:
        seconds: Seconds spent in each stage so far.
        expected: Seconds that each stage is expected to take, where it was estimated.
    """

    def __init__(self, run: Run, limit: float | str | None) -> None:
        from mergeforget.files import read_json_object, reading

        self.run, self.start = run, time.monotonic()
        path = run.root / "clock.json"
        stored = read_json_object(path) if path.exists() else {}
        with reading(path):
            self.seconds = {name: float(passed) for name, passed in stored.items()}
        self.limit = seconds_of(limit)
        self.expected: dict[str, float] = {}
        self.now, self.begun = "", self.start
        self.work = ""  # the progress line of the work in progress
        self.facts: dict[str, str] = {}  # measured by finished stages
        self._live: Any = None
        self._printed = time.monotonic()

    @property
    def spent(self) -> bool:
        """Whether the limit is used up."""
        return self.limit is not None and time.monotonic() - self.start >= self.limit

    def budget(self, share: float) -> SearchBudget:
        """Return the budget of a search: a share of the remaining time."""
        from mergeforget.search.budget import SearchBudget

        if self.limit is None:
            return SearchBudget()
        left = max(1.0, self.limit - (time.monotonic() - self.start))
        return SearchBudget(seconds=share * left)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block towards a stage, and announce the stage."""
        from mergeforget.console import duration, say
        from mergeforget.files import write_json

        self.now, self.begun = name, time.monotonic()
        self.run.set_state(f"unlearn-{name}", "running")
        say(f"[{duration(self.begun - self.start)}] {name}")
        try:
            yield
        except BaseException:
            self.run.set_state(f"unlearn-{name}", "failed")
            raise
        finally:
            passed = time.monotonic() - self.begun
            self.seconds[name] = self.seconds.get(name, 0.0) + passed
            write_json(self.run.root / "clock.json", self.seconds)
        self.run.set_state(f"unlearn-{name}", "done")

    def left(self) -> float | None:
        """Return the expected seconds until the job ends; None without an estimate.

        The expected seconds are corrected by the pace of the finished stages.
        """
        if not self.expected or self.now not in STAGES:
            return None
        index = STAGES.index(self.now)
        known = [s for s in STAGES[:index] if s in self.expected and self.seconds.get(s, 0.0) > 1]
        planned = sum(self.expected[s] for s in known)
        pace = sum(self.seconds[s] for s in known) / planned if planned else 1.0
        pace = min(max(pace, PACE[0]), PACE[1])
        in_stage = self.expected.get(self.now, 0.0) * pace - (time.monotonic() - self.begun)
        later = sum(self.expected.get(s, 0.0) for s in STAGES[index + 1 :]) * pace
        return max(0.0, in_stage) + later

    def lines(self) -> list[str]:
        """Return the lines of the display: stage and times, work in progress, and measurements."""
        from mergeforget.console import duration

        left = self.left()
        head = f"{self.now} ({STAGES.index(self.now) + 1} of {len(STAGES)})" if self.now else ""
        rest = "" if left is None else f", about {duration(left)} left"
        facts = "; ".join(f"{name}: {text}" for name, text in self.facts.items())
        spent = duration(time.monotonic() - self.start)
        return [line for line in (f"{head}, {spent} spent{rest}", self.work, facts) if line]

    def show(self, line: str) -> None:
        """Set the line of the work in progress; called by :class:`console.Progress`."""
        self.work = line

    def printed(self) -> None:
        """Record that a message was printed; called by the console."""
        self._printed = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the job while the block runs."""
        from mergeforget.console import displayed_by, shows_progress

        if not shows_progress():
            yield
            return
        done = threading.Event()
        with displayed_by(self):
            if sys.stderr.isatty():
                self._live = _live(self)
                self._live.start()
            else:
                threading.Thread(target=self._plain_lines, args=(done,), daemon=True).start()
            try:
                yield
            finally:
                done.set()
                if self._live is not None:
                    self._live.stop()
                    self._live = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the display while the block asks the user."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        try:
            yield
        finally:
            if live is not None:
                self._live = _live(self)
                self._live.start()

    def _plain_lines(self, done: threading.Event) -> None:
        from mergeforget.console import say

        while not done.wait(1.0):
            if self.now and time.monotonic() - self._printed >= SILENCE:
                say(". ".join(self.lines()[:2]))


def _live(job: Job) -> Any:
    """Return a display that redraws the lines of a job until it is stopped."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from mergeforget.parsing import printable

    class Lines:
        def __rich__(self) -> Text:
            return Text("\n".join(map(printable, job.lines())), no_wrap=True, overflow="ellipsis")

    return Live(Lines(), console=Console(stderr=True), refresh_per_second=1 / REDRAWN,
                transient=True, redirect_stdout=False)  # fmt: skip


def seconds_of(limit: float | str | None) -> float | None:
    """Return a time limit in seconds; see :class:`Job`.

    Raises:
        UsageError: The limit is not a positive number of seconds, or a text without a unit.

    >>> seconds_of("30m")
    1800.0
    """
    from mergeforget.search.budget import parse_budget

    if limit is None:
        return None
    seconds: float | None = None
    if isinstance(limit, str):
        with suppress(UsageError):
            seconds = parse_budget(limit).seconds
    elif math.isfinite(limit) and limit > 0:
        seconds = limit
    if seconds is None:
        raise UsageError(f"The time {limit!r} is not a time such as 90s, 30m or 2h.")
    return seconds


@dataclass(frozen=True)
class RowSeconds:
    """Measured seconds per row: of a forward pass, and of a forward and backward pass in a batch.

    A forward pass over many rows uses several threads well; small batches do so much less.
    """

    forward: float
    batch: float


def seconds_per_row(model: Any, rows: Sequence[Encoded]) -> RowSeconds:
    """Measure the speed of a model on encoded rows; its weights get no gradients.

    Args:
        rows: Up to 16 of them are processed at once, and twice ``BATCH_ROWS`` of them in batches.
    """
    from mergeforget.data.batches import pack
    from mergeforget.train.forward import predict
    from mergeforget.train.nlls import read_nlls

    many = (list(rows) * 16)[:16]
    read_nlls(model, many[:2])  # the first pass also checks the architecture
    begin = time.monotonic()
    read_nlls(model, many)
    forward = (time.monotonic() - begin) / len(many)
    needed = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in needed:
        p.requires_grad_(False)
    model.enable_input_require_grads()
    device = next(model.parameters()).device
    try:
        begin = time.monotonic()
        for start in (0, BATCH_ROWS):
            batch = pack(many[start : start + BATCH_ROWS]).to(device)
            predict(model, batch).nll().mean().backward()
        backward = (time.monotonic() - begin) / (2 * BATCH_ROWS)
    finally:
        model.disable_input_require_grads()
        for p, needs in needed:
            p.requires_grad_(needs)
    return RowSeconds(forward, backward)


def expected_seconds(
    recipe: Recipe, rows: RequestRows, memorise: bool, row: RowSeconds
) -> dict[str, float]:
    """Return the expected seconds of each stage and each attack.

    A step trains on three sets of ``batch_size`` rows. The levels, the range test and each check
    are forward passes over forget rows, their twins and unseen rows, in each form of prompts. The
    search measures six models in full and five by their likelihoods, as long as eight in full, with
    three kinds of prompts.
    """
    from mergeforget.train.checks import SAMPLE, sample_size

    forget, retain = len(rows.forget), len(rows.retain)
    pair = 0.0
    if recipe.pair is not None:
        shared = recipe.pair.trajectory == "shared"  # under is a snapshot of over
        for one in (recipe.pair.over,) if shared else (recipe.pair.over, recipe.pair.under):
            rows_per_step = 3 * one.batch_size * one.accumulation(forget)
            pair += row.batch * rows_per_step * one.expected_steps(forget)
    training = None if recipe.pair is None else recipe.pair.over
    until = None if training is None else training.until
    if training and until:
        steps = training.expected_steps(forget)
        counted = (2 if until.also_raw else 1) * forget
        forms = 1 + until.also_raw + until.forget_variants  # usually one variant besides chat
        trained, unseen = forms * forget, forms * len(rows.holdout) // 2
        kept = (2 if until.retain_variants else 1) * min(SAMPLE, retain)
        most = sample_size(forms)
        check = min(most, trained) + kept + min(most, unseen)
        checks = 2 + steps / training.steps_between_checks(counted)
        pair += row.forward * (checks * check + 3 * (trained + unseen))
    if memorise:
        epochs = recipe.memorise.epochs * (1 if recipe.memorise.stop_at is None else LEARNED)
        pair += epochs * (forget + retain) * (row.batch + TUNING * row.forward)
    search = ASKING * 8 * 3 * 2 * (forget + retain) * row.forward
    every = forget + retain + len(rows.holdout)
    attacks = (
        PROMPTS * forget * row.forward,
        ROUNDED * every * row.forward,
        RELEARNED * every * row.forward + 2 * 100 * 4 * row.batch,
    )
    return {"pair": pair, "search": search} | dict(zip(ATTACKS, attacks, strict=True))
