"""General knowledge: accuracy on MMLU."""

from __future__ import annotations

from mergeforget.data.schema import MMLU_SHOTS, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score


@metric("mmlu", source="MMLU, arXiv:2009.03300, with the prompts of SemEval-2025 Task 4")
def mmlu(measured: Measured, split: str = "mmlu", task: str = "") -> Score | None:
    """Accuracy over all questions of all subjects, or of the subject ``task``."""
    counts = [c for subject, c in measured.mmlu.items() if not task or subject == task]
    right, asked = sum(r for r, _ in counts), sum(n for _, n in counts)
    values = [1.0] * right + [0.0] * (asked - right)
    shots = measured.mmlu_shots
    definition = "mmlu-micro@1" if shots == MMLU_SHOTS else f"mmlu-micro-{shots}-shot@1"
    return mean_score(
        "mmlu", split, values, "higher", task=task, chance=0.25, definition=definition
    )
