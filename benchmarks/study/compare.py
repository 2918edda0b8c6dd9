"""Compare the results of two runs of a study, on two machines or at two times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.study.cells import Results
from mergeforget.errors import InputError


@dataclass(frozen=True)
class Compared:
    """The comparison of one step of both runs.

    Attributes:
        figures: Number of values that either run measured.
        differ: The two values by path, where they differ; None for a missing value.
    """

    step: str
    figures: int
    differ: dict[str, tuple[Any, Any]]

    @property
    def told(self) -> str:
        """The comparison in one line."""
        if not self.differ:
            return f"{self.step}: the same, {self.figures} figures"
        place, (first, second) = max(self.differ.items(), key=lambda item: _gap(*item[1]))
        return (
            f"{self.step}: {len(self.differ)} of {self.figures} figures differ, by most at "
            f"{place}: {first} and {second}"
        )


def compared(first: Results, second: Results) -> list[Compared]:
    """Compare every step that both runs carried out with the same commands.

    Raises:
        InputError: There is no such step.
    """
    same = "fingerprint"  # hash of the commands of a step and of the steps that it reads
    both = [s for s in first if s in second and first[s][same] == second[s][same]]
    if not both:
        raise InputError(
            "The two have no step in common that was run with the same commands. Give the "
            "`results` folders of two runs of one study."
        )
    return [_step(step, first[step]["measured"], second[step]["measured"]) for step in both]


def _step(step: str, first: Any, second: Any) -> Compared:
    here, there = dict(_flat(first)), dict(_flat(second))
    places = list(dict.fromkeys([*here, *there]))
    pairs = {place: (here.get(place), there.get(place)) for place in places}
    return Compared(step, len(places), {k: v for k, v in pairs.items() if v[0] != v[1]})


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Return the values by path, with the paths of ``Column.reads``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        below = f"{place}.{key}" if place else str(key)
        if isinstance(one, dict | list):
            yield from _flat(one, below)
        else:
            yield below, one


def _gap(first: Any, second: Any) -> float:
    """Return the difference of two values relative to the larger one; 2 for texts."""
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    return abs(first - second) / max(abs(first), abs(second)) if numbers else 2.0
