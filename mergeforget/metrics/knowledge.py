"""Share of questions about documents that the model answers."""

from __future__ import annotations

from mergeforget.data.schema import Answer, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import answers_of, direction, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "knowledge@1"


@metric("knowledge", source="SemEval-2025 Task 4, evaluation script")
def knowledge(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of the questions (``qa`` rows) whose answer equals the reference."""
    rows = answers_of(measured, split, task, "qa")
    values = [float(is_exact(a)) for a in rows]
    return mean_score(
        "knowledge",
        split,
        values,
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        kind="qa",
        chance=0.0,
        definition=DEFINITION,
    )


def is_exact(answer: Answer) -> bool:
    """Return whether the completion is the reference, ignoring case and surrounding whitespace.

    The reference as the tokenizer decodes it is equal; the official script compares the text only.
    A completion may continue a reference that was cut.
    """
    said = answer.completion.strip().lower()
    known = [reference.strip().lower() for reference in answer.references]
    return any(said.startswith(one) if answer.row.cut else said == one for one in known)
