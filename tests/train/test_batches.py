"""Which rows a batch contains: one set at a time, or chunks in sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from short_training import GA, GD

from mergeforget.train.samplers import AlternatingSampler, BySetSampler, ChunkedSampler
from mergeforget.train_config import Term


def test_alternating_steps_contain_one_set_each(train: Callable[..., Any]) -> None:
    _, lines = train(batches="alternating", batch_size=1, gradient_accumulation=2, epochs=1)
    terms = [list(x["terms"]) for x in lines]
    assert terms == [["npo_forget"], ["gd_retain"]] * 3  # five rows, at most two per step


def test_alternating_samples_every_row_once_per_epoch() -> None:
    order = AlternatingSampler(rows=11, batch_size=2, accumulation=2, seed=0)
    parts = list(order)
    assert len(parts) == len(order) and all(1 <= len(p) <= 2 for p in parts)
    for name in ("forget", "retain"):
        assert sorted(place.row for p in parts for place in p if place.only == name) == list(
            range(11)
        )
    assert all(len({place.only for place in p}) == 1 for p in parts)
    order.set_epoch(1)
    assert list(order) != parts


def test_by_set_samples_every_row_once_per_epoch() -> None:
    sizes = {"forget": 5, "retain": 7, "refusal": 5}
    order = BySetSampler(sizes, batch_size=2, accumulation=2, seed=0)
    for epoch in range(2):
        order.set_epoch(epoch)
        parts = list(order)
        assert len(parts) == len(order) == 2 * (2 + 2 + 2)
        assert all(len({place.only for place in part}) == 1 for part in parts)
        counted = sorted((p.only, p.row) for part in parts for p in part if p.counts)
        assert counted == sorted((name, i) for name, size in sizes.items() for i in range(size))
    names = [part[0].only for part in parts[::2]]
    assert names != sorted(names)


def test_by_set_trains_each_term_on_steps_of_its_set(train: Callable[..., Any]) -> None:
    terms = [GA, Term(loss="idk", on="forget"), GD]
    _, lines = train(objective=terms, batches="by_set")
    assert all(len(line["terms"]) == 1 for line in lines)
    assert {name for line in lines for name in line["terms"]} == {
        "ga_forget", "idk_forget", "gd_retain"
    }  # fmt: skip


def test_chunks_are_trained_in_sequence() -> None:
    order = ChunkedSampler(rows=5, chunk=2, epochs=3, batch_size=1, accumulation=1, seed=0)
    rows = [p[0].row for p in order]
    assert order.chunk_steps == [6, 6, 3] and order.beginnings == {0, 6, 12}
    assert sorted(rows[:6]) == [0, 0, 0, 1, 1, 1] and rows[12:] == [4, 4, 4]


def test_each_chunk_begins_with_a_fresh_optimiser_and_schedule(train: Callable[..., Any]) -> None:
    _, lines = train(chunk_rows=2, epochs=2, batch_size=1, retain_per_forget=3)
    rates = [x["learning_rate"] for x in lines]
    assert len(lines) == 10 and rates[:4] == pytest.approx(rates[4:8])
    assert rates[:4] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert lines[-1]["epoch"] == pytest.approx(2)


def test_each_chunk_has_a_separate_warm_up(train: Callable[..., Any]) -> None:
    _, lines = train(chunk_rows=2, epochs=3, batch_size=1, warmup_epochs=1.0)
    rates = [x["learning_rate"] for x in lines]
    chunk = [0, 0.5, 1, 0.75, 0.5, 0.25]  # two steps up, four down; the last chunk has one row
    assert rates == pytest.approx([1e-2 * f for f in [*chunk, *chunk, 0, 1, 0.5]])
