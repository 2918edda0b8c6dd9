"""Members and non-members of the same kind: what differs must be membership alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from mergeforget.data.schema import Row


def matched(
    members: Sequence[Row], outside: Sequence[Row], seed: int
) -> tuple[list[Row], list[Row]]:
    """Non-members in the members' shares of tasks, and the members that they compare with."""
    nonmembers = match_tasks(members, outside, seed)
    return of_tasks(members, nonmembers), nonmembers


def match_tasks(members: Sequence[Row], outside: Sequence[Row], seed: int) -> list[Row]:
    """Non-members in the members' shares of tasks: another mixture would tell them apart.

    At most as many as members, each task by itself; where no task is shared, tasks do not count.
    """
    wanted = Counter(row.task for row in members)
    if not wanted.keys() & {row.task for row in outside}:
        return _draw(outside, len(members), f"{seed}")
    drawn = [
        row
        for task, n in sorted(wanted.items())
        for row in _draw([r for r in outside if r.task == task], n, f"{seed}-{task}")
    ]
    places = {row.id: i for i, row in enumerate(outside)}
    return sorted(drawn, key=lambda row: places[row.id])


def of_tasks(members: Sequence[Row], nonmembers: Sequence[Row]) -> list[Row]:
    """Members of the tasks that have non-members to compare with, where tasks count."""
    tasks = {row.task for row in nonmembers}
    return [row for row in members if row.task in tasks] or list(members)


def _draw(rows: Sequence[Row], n: int, seed: str) -> list[Row]:
    if len(rows) <= n:
        return list(rows)
    return random.Random(seed).sample(list(rows), n)
