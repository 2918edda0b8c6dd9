"""ROUGE-L recall of document continuations."""

from __future__ import annotations

from mergeforget.data.schema import Answer, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rouge import Words, closest_recall
from mergeforget.metrics._rows import answers_of, direction, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITIONS: dict[Words, str] = {"latin": "regurgitation@1", "unicode": "regurgitation-unicode@1"}


@metric("regurgitation", source="SemEval-2025 Task 4, evaluation script; ROUGE-L: Lin 2004")
def regurgitation(
    measured: Measured, split: str, task: str = "", *, words: Words = "latin"
) -> Score | None:
    """Mean ROUGE-L recall of the completions (``sc`` rows), in [0, 1].

    The chance level is the score of the same completions against the reference of the next row.

    Args:
        words: ``latin`` is the official tokeniser; ``unicode`` counts words of any script, and uses
            all rows that are not questions if the split has no ``sc`` row.
    """
    rows = answers_of(measured, split, task, "sc")
    if not rows and words == "unicode":
        rows = answers_of(measured, split, task, "other")
    values = [closest_recall(a, a.completion, words) for a in rows]
    return mean_score(
        "regurgitation",
        split,
        values,
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        kind="sc",
        chance=_of_other_rows(rows, words),
        definition=DEFINITIONS[words],
    )


def _of_other_rows(answers: list[Answer], words: Words) -> float | None:
    if len(answers) < 2:
        return None
    others = [*answers[1:], answers[0]]
    values = [closest_recall(b, a.completion, words) for a, b in zip(answers, others, strict=True)]
    return sum(values) / len(values)
