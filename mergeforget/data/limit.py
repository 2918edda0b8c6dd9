"""Draw a subset of the data for a quick trial: whole subjects, stratified by task."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mergeforget.data.schema import Row
from mergeforget.errors import UsageError


def limit_rows(rows: Sequence[Row], limit: int | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Draw whole subjects, so that no document or person is trained in part.

    Args:
        rows: rows of one split.
        limit: maximum number of rows; None keeps all.
        seed: random seed.

    Returns:
        The rows kept and the rest, each in the order of ``rows``. The rest shares no document with
        those kept: no training touches it, so it can serve as non-members.

    Raises:
        UsageError: the limit is smaller than every document.
    """
    if limit is None or limit >= len(rows):
        return list(rows), []
    waiting = _shuffled_documents(rows, seed)
    total = {task: sum(map(len, documents)) for task, documents in waiting.items()}
    kept: dict[str, int] = dict.fromkeys(waiting, 0)
    chosen: set[str] = set()
    while any(waiting.values()):
        # the task that is furthest below its share goes next
        task = min((t for t in waiting if waiting[t]), key=lambda t: (kept[t] / total[t], t))
        document = waiting[task].pop()
        if sum(kept.values()) + len(document) <= limit:
            kept[task] += len(document)
            chosen.add(document[0].subject)
    if not chosen:
        raise UsageError(
            f"A limit of {limit} rows holds no whole document; the smallest has "
            f"{min(len(d) for d in _documents(rows).values())} rows."
        )
    return [r for r in rows if r.subject in chosen], [r for r in rows if r.subject not in chosen]


def _documents(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by document, in order."""
    documents: dict[str, list[Row]] = {}
    for row in rows:
        documents.setdefault(row.subject, []).append(row)
    return documents


def _shuffled_documents(rows: Sequence[Row], seed: int) -> dict[str, list[list[Row]]]:
    """Documents by task, in a seeded order that does not depend on the other tasks."""
    tasks: dict[str, list[list[Row]]] = {}
    for document in _documents(rows).values():
        tasks.setdefault(document[0].task, []).append(document)
    for task, documents in tasks.items():
        random.Random(f"{seed}-{task}").shuffle(documents)
    return tasks
