"""From proxy to fine: a walk over places on a few axes that begins with large steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Place = tuple[int, ...]


def climb(
    rank: Callable[[Place], Any],
    start: Place,
    size: int,
    hint: Callable[[], Place | None] = lambda: None,
) -> Place:
    """The best place that is reached by steps along one axis at a time.

    The first steps are a quarter of an axis; where none improves, steps are halved, and the walk
    ends at a place that no neighbour beats.

    Args:
        rank: of a place, larger is better; None where it has none. A place is asked for once.
        start: one number in [0, size) for each axis.
        size: places on each axis.
        hint: asked after each rank: where the best is now expected, if anywhere. Where that is
            better than all before, the walk goes on from there by the smallest steps.
    """
    known: dict[Place, Any] = {}
    best, step = start, max(1, size // 4)

    def better(place: Place) -> bool:
        if place in known:
            return False
        known[place] = rank(place)
        return known[place] is not None and (known[best] is None or known[place] > known[best])

    def follow(best: Place, step: int) -> tuple[Place, int, bool]:
        place = hint()
        return (place, 1, True) if place is not None and better(place) else (best, step, False)

    known[start] = rank(start)
    best, step, _ = follow(best, step)
    while step:
        moved = False
        for axis in range(len(start)):
            for way in (-1, 1):
                place = (*best[:axis], best[axis] + way * step, *best[axis + 1 :])
                if 0 <= place[axis] < size and better(place):
                    best, moved = place, True
                best, step, followed = follow(best, step)
                moved = moved or followed
        step = step if moved else step // 2
    return best
