"""How much a search may spend: candidates, or time."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TypeVar

from mergeforget.errors import UsageError

T = TypeVar("T")
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass
class SearchBudget:
    """Counts from the moment it is made.

    Attributes:
        candidates: at most so many, those of an earlier call included; None for any number.
        seconds: no candidate begins after these.
    """

    candidates: int | None = None
    seconds: float | None = None
    _start: float = field(default_factory=time.monotonic)

    @property
    def limited(self) -> bool:
        """Whether it may end a search before everything is measured."""
        return self.candidates is not None or self.seconds is not None

    def allows(self, measured: int) -> bool:
        """Whether another candidate may begin."""
        if self.candidates is not None and measured >= self.candidates:
            return False
        return self.seconds is None or time.monotonic() - self._start < self.seconds

    def cut(self, todo: list[T], done: int) -> list[T]:
        """What the number of candidates leaves of ``todo``."""
        return todo if self.candidates is None else todo[: max(0, self.candidates - done)]


def parse_budget(text: str | None) -> SearchBudget:
    """``20`` candidates, or a time: ``90s``, ``10m``, ``2h``.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return SearchBudget()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0 or ("." in match[1] and not match[2]):
        raise UsageError(
            f"The budget {text!r} is neither a number of candidates such as 20 nor a time such as "
            "90s, 10m or 2h."
        )
    if match[2]:
        return SearchBudget(seconds=float(match[1]) * UNITS[match[2]])
    return SearchBudget(candidates=int(match[1]))
