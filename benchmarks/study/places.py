"""The files and folders of a study, and its remaining time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.study.definition import StudyDefinition, StudyStep


@dataclass(frozen=True)
class Places:
    """The files and folders of a study.

    Attributes:
        out: Contains ``runs/STEP``, and ``steps/STEP.json`` with the progress of each step.
        results: Contains ``STEP.json`` with the values of each step, and the figures of the
            document.
        data: Folder of the data sets.
        file: The study's file.
    """

    out: Path
    results: Path
    data: Path
    file: Path

    def folder(self, step: StudyStep) -> Path:
        """Return the working folder of a step: that of its name, or of the step in ``at``."""
        return self.out / "runs" / (step.at or step.name)

    def folders(self, study: StudyDefinition, step: StudyStep) -> dict[str, Path]:
        """Return the values of the placeholders in the commands of a step."""
        steps = {other.name: self.folder(other) for _, other in study.steps()}
        own = {"here": self.folder(step), "data": self.data, "study": self.file.parent}
        return steps | own

    def mark(self, step: str) -> Path:
        """Return the file that records the progress of a step."""
        return self.out / "steps" / f"{step}.json"


@dataclass
class Clock:
    """Elapsed and remaining time, estimated from the expected minutes of each step."""

    limit: float | None = None  # seconds
    began: float = field(default_factory=time.monotonic)
    expected: float = 0.0  # expected seconds of the finished steps
    spent: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def ended(self, step: StudyStep, seconds: float) -> None:
        """Record a finished step and its duration in seconds."""
        self.expected += 60 * step.minutes
        self.spent += seconds

    def estimate(self, steps: Iterable[StudyStep], jobs: int = 1) -> float:
        """Return the seconds for these steps at the measured speed, with ``jobs`` in parallel."""
        pace = self.spent / self.expected if self.expected else 1.0
        return pace * sum(60 * step.minutes for step in steps) / jobs

    def allows(self) -> bool:
        """Return whether there is time to start a step."""
        return self.limit is None or self.limit - self.elapsed >= 1

    def left(self) -> float | None:
        """Seconds left, or None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.elapsed)
