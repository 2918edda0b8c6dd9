"""Whether answers are word for word the reference."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import answers_of, direction
from mergeforget.metrics._statistics import mean_score
from mergeforget.metrics.knowledge import is_exact
from mergeforget.score import Score

DEFINITION = "exact-match@1"


@metric(
    "exact_match", source="exact match without case, as in SemEval-2025 Task 4's knowledge score"
)
def exact_match(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of exact answers to questions; over all rows where the split has no question."""
    rows = answers_of(measured, split, task, "qa") or answers_of(measured, split, task)
    values = [float(is_exact(a)) for a in rows]
    return mean_score(
        "exact_match", split, values, direction(split), task=task, chance=0.0, definition=DEFINITION
    )
