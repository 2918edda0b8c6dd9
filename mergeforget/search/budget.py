"""Budget of a search: a number of candidates, or a time."""

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
    """A limit on candidates or time; the time starts when the object is created.

    Attributes:
        candidates: Maximum number of candidates, including those of an earlier call; None for no
            limit.
        seconds: Time after which no further candidate begins, except the first one; None for no
            limit.
    """

    candidates: int | None = None
    seconds: float | None = None
    _start: float = field(default_factory=time.monotonic)

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.candidates is not None or self.seconds is not None

    def allows(self, begun: int) -> bool:
        """Return whether another candidate may begin; the first one always may.

        Args:
            begun: Number of candidates so far, including those without finite scores.
        """
        if self.candidates is not None and begun >= self.candidates:
            return False
        in_time = self.seconds is None or time.monotonic() - self._start < self.seconds
        return in_time or not begun

    def cut(self, todo: list[T], done: int) -> list[T]:
        """Truncate ``todo`` to the candidate budget, of which ``done`` are used."""
        return todo if self.candidates is None else todo[: max(0, self.candidates - done)]


def parse_budget(text: str | None) -> SearchBudget:
    """Parse a number of candidates such as ``20``, or a time: ``90s``, ``10m``, ``2h``.

    Raises:
        UsageError: The text is neither.
    """
    if text is None:
        return SearchBudget()
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0 or ("." in match[1] and not match[2]):
        raise UsageError(
            f"The budget {text!r} is neither a number of candidates such as 20 nor a time such as "
            "90s, 10m or 2h."
        )
    if match[2]:
        return SearchBudget(seconds=float(match[1]) * UNITS[match[2]])
    return SearchBudget(candidates=int(match[1]))
