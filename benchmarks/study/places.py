"""Where a study finds and leaves its files, and how its time is spent."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.study.definition import StudyDefinition, StudyStep


@dataclass(frozen=True)
class Places:
    """Where a study finds and leaves its files.

    Attributes:
        out: ``runs/STEP`` and ``steps/STEP.json``, which says how far a step is.
        results: ``STEP.json`` with its figures, and the pictures: what the document is made of.
        data: the data sets' folder.
        file: the study's file.
    """

    out: Path
    results: Path
    data: Path
    file: Path

    def folder(self, step: StudyStep) -> Path:
        """Where a step works: in the folder of its name, or of the step it is at."""
        return self.out / "runs" / (step.at or step.name)

    def folders(self, study: StudyDefinition, step: StudyStep) -> dict[str, Path]:
        """What the names in a step's commands stand for."""
        steps = {other.name: self.folder(other) for _, other in study.steps()}
        own = {"here": self.folder(step), "data": self.data, "study": self.file.parent}
        return steps | own

    def mark(self, step: str) -> Path:
        """File that records how far a step is."""
        return self.out / "steps" / f"{step}.json"


@dataclass
class Clock:
    """What was spent and what is left, from the minutes that each step is expected to take."""

    limit: float | None = None  # seconds
    began: float = field(default_factory=time.monotonic)
    expected: float = 0.0  # of what ended, in seconds
    spent: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def ended(self, step: StudyStep, seconds: float) -> None:
        """Count a finished step and the seconds that it took."""
        self.expected += 60 * step.minutes
        self.spent += seconds

    def estimate(self, steps: Iterable[StudyStep], jobs: int = 1) -> float:
        """Seconds for these steps, at the speed seen so far, ``jobs`` of them at a time."""
        pace = self.spent / self.expected if self.expected else 1.0
        return pace * sum(60 * step.minutes for step in steps) / jobs

    def allows(self) -> bool:
        """Whether there is time to begin something."""
        return self.limit is None or self.limit - self.elapsed >= 1

    def left(self) -> float | None:
        """Seconds left, or None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.elapsed)
