"""ROUGE-L recall of all answers, of questions and completions alike."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rouge import Words, closest_recall
from mergeforget.metrics._rows import answers_of, direction, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITIONS: dict[Words, str] = {"latin": "verbatim-rouge@1", "unicode": "verbatim-rouge-unicode@1"}


@metric("verbatim_rouge", source="MUSE, arXiv:2407.06460, with recall as in TOFU, arXiv:2401.06121")
def verbatim_rouge(
    measured: Measured, split: str, task: str = "", *, words: Words = "latin"
) -> Score | None:
    """Mean ROUGE-L recall over rows of every kind, in [0, 1].

    Args:
        words: ``latin`` is the tokeniser of rouge-score; ``unicode`` counts words of any script.
    """
    answers = answers_of(measured, split, task)
    values = [closest_recall(a, a.completion, words) for a in answers]
    return mean_score(
        "verbatim_rouge",
        split,
        values,
        direction(split),
        subjects=subjects_of(answers),
        task=task,
        definition=DEFINITIONS[words],
        by_row=True,
    )
