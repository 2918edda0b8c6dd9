"""A quick request to unlearn, for tests of the whole job, and answers without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.api.unlearn import Unlearned, unlearn
from mergeforget.data.schema import Row

SMALL = [
    "pair.over.lora.r=4", "pair.under.lora.r=4", "pair.over.learning_rate=5e-3",
    "pair.over.until.largest_rate=2e-2", "pair.over.until.retain_kept=0",
    "pair.under.until.retain_kept=0", "search.weights=[[0.5, 0.5]]",
]  # fmt: skip


def call(knowing: dict[str, Path], out: Path, **options: Any) -> Unlearned:
    files = {n: knowing[n] for n in ("forget", "retain", "holdout")}
    return unlearn(knowing["model"], out=out, settings=SMALL, **(files | options))


def answers(rows: Sequence[Row]) -> list[Row]:
    """Answer each row with its own prompt, as ``Ask`` of ``read_request``."""
    return [replace(row, output=f"answer to {row.input}") for row in rows]
