"""From coarse to fine: a walk over places on a few axes that begins with large steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Place = tuple[int, ...]


def climb(rank: Callable[[Place], Any], start: Place, size: int) -> Place:
    """The best place that is reached by steps along one axis at a time.

    The first steps are a quarter of an axis; where none improves, steps are halved, and the walk
    ends at a place that no neighbour beats.

    Args:
        rank: of a place, larger is better; None where it has none. A place is asked for once.
        start: one number in [0, size) for each axis.
        size: places on each axis.
    """
    known: dict[Place, Any] = {}

    def look(place: Place) -> Any:
        if place not in known:
            known[place] = rank(place)
        return known[place]

    best, step = start, max(1, size // 4)
    look(best)
    while step:
        moved = False
        for axis in range(len(start)):
            for way in (-step, step):
                place = (*best[:axis], best[axis] + way, *best[axis + 1 :])
                found = look(place) if 0 <= place[axis] < size else None
                if found is not None and (known[best] is None or found > known[best]):
                    best, moved = place, True
        step = step if moved else step // 2
    return best
