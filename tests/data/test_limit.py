from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.data.schema import Row
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import UsageError


def rows_of(sizes: list[tuple[str, int]]) -> list[Row]:
    """Documents of a task with a completion and some questions."""
    return [
        Row(f"doc{i}-{kind}", "a", "b", task)
        for i, (task, questions) in enumerate(sizes)
        for kind in ["sc1", *(f"qa{q}" for q in range(questions))]
    ]


documents = st.lists(
    st.tuples(st.sampled_from(["Task1", "Task2"]), st.integers(0, 5)), min_size=1, max_size=30
)


@given(documents, st.integers(6, 100), st.integers(0, 5))
def test_limiting_keeps_documents_whole_and_loses_none(
    sizes: list[tuple[str, int]], limit: int, seed: int
) -> None:
    rows = rows_of(sizes)
    kept, rest = limit_rows(rows, limit, seed)
    assert len(kept) <= limit
    assert not {r.subject for r in kept} & {r.subject for r in rest}
    assert sorted(kept + rest, key=rows.index) == rows
    assert kept == sorted(kept, key=rows.index)
    assert limit_rows(rows, limit, seed) == (kept, rest)


def test_each_task_keeps_its_share() -> None:
    rows = rows_of([("Task1", 1)] * 60 + [("Task2", 1)] * 20 + [("Task3", 1)] * 20)
    kept, _ = limit_rows(rows, 40, seed=0)
    assert Counter(r.task for r in kept) == {"Task1": 24, "Task2": 8, "Task3": 8}


def test_another_seed_draws_other_documents() -> None:
    rows = rows_of([("Task1", 1)] * 50)
    assert limit_rows(rows, 20, 0)[0] != limit_rows(rows, 20, 1)[0]


@pytest.mark.parametrize("limit", [None, 4, 100])
def test_a_large_limit_keeps_all_rows(limit: int | None) -> None:
    rows = rows_of([("Task1", 1)] * 2)
    assert limit_rows(rows, limit, 0) == (rows, [])


def test_limit_below_the_smallest_document_is_refused() -> None:
    with pytest.raises(UsageError, match="the smallest has 3"):
        limit_rows(rows_of([("Task1", 2), ("Task1", 3)]), 2, 0)
