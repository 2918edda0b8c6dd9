"""Members and non-members of the same kind: what differs must be membership alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mergeforget.data.limit import limit_rows
from mergeforget.data.schema import Row

RATIO = 2  # non-members to one member, at most


def matched(
    members: Sequence[Row], outside: Sequence[Row], seed: int
) -> tuple[list[Row], list[Row]]:
    """Non-members in the members' shares of tasks, and the members that they compare with."""
    nonmembers = match_tasks(members, outside, seed)
    return of_tasks(members, nonmembers), nonmembers


def match_tasks(members: Sequence[Row], outside: Sequence[Row], seed: int) -> list[Row]:
    """Non-members in the members' shares of tasks: another mixture would tell them apart.

    Twice as many as members where every task has them, since a likelihood costs little and the AUC
    is as noisy as the smaller side; at least as many where there are so many. Whole documents,
    each task by itself; where no task is shared, tasks do not count.
    """
    wanted = Counter(row.task for row in members)
    there = Counter(row.task for row in outside)
    if not wanted.keys() & there.keys():
        return _draw(outside, RATIO * len(members), seed)
    plenty = min(there[task] / n for task, n in wanted.items() if there[task])
    ratio = min(RATIO, max(1, int(plenty)))
    drawn = {
        row.id
        for task, n in sorted(wanted.items())
        for row in _draw([r for r in outside if r.task == task], ratio * n, seed)
    }
    return [row for row in outside if row.id in drawn]


def of_tasks(members: Sequence[Row], nonmembers: Sequence[Row]) -> list[Row]:
    """Members of the tasks that have non-members to compare with, where tasks count."""
    tasks = {row.task for row in nonmembers}
    shared = [row for row in members if row.task in tasks]
    return shared or list(members)


def _draw(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """Whole documents, at most ``n`` rows; all of them where even the smallest has more."""
    smallest = min(Counter(row.subject for row in rows).values(), default=0)
    return limit_rows(rows, max(n, smallest), seed)[0] if rows else []
