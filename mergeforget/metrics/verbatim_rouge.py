"""How much of every answer the model writes by itself, questions and completions alike."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rouge import rouge_l_recall
from mergeforget.metrics._rows import answers_of, direction
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "verbatim-rouge@1"


@metric("verbatim_rouge", source="MUSE, arXiv:2407.06460, with recall as in TOFU, arXiv:2401.06121")
def verbatim_rouge(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean ROUGE-L recall over rows of every kind, in [0, 1]."""
    values = [rouge_l_recall(a.row.output, a.completion) for a in answers_of(measured, split, task)]
    return mean_score(
        "verbatim_rouge",
        split,
        values,
        direction(split),
        task=task,
        definition=DEFINITION,
        by_row=True,
    )
