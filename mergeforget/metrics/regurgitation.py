"""How much of a document's continuation the model still writes."""

from __future__ import annotations

from mergeforget.data.schema import Answer, Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rouge import rouge_l_recall
from mergeforget.metrics._rows import answers_of, direction
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "regurgitation@1"


@metric("regurgitation", source="SemEval-2025 Task 4, evaluation script; ROUGE-L: Lin 2004")
def regurgitation(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean ROUGE-L recall of the completions (``sc`` rows), in [0, 1].

    Chance is what the same completions score against the next row's reference: what the words
    that all documents share give to any text.
    """
    rows = answers_of(measured, split, task, "sc")
    values = [rouge_l_recall(a.row.output, a.completion) for a in rows]
    return mean_score(
        "regurgitation",
        split,
        values,
        direction(split),
        task=task,
        kind="sc",
        chance=_of_other_rows(rows),
        definition=DEFINITION,
    )


def _of_other_rows(answers: list[Answer]) -> float | None:
    if len(answers) < 2:
        return None
    others = [*answers[1:], answers[0]]
    values = [
        rouge_l_recall(b.row.output, a.completion) for a, b in zip(answers, others, strict=True)
    ]
    return sum(values) / len(values)
