"""ROUGE-L F1 between answer and completion, as MUSE computes it."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rouge import LATIN, longest_common_subsequence
from mergeforget.metrics._rows import answers_of, direction, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "rouge-l-f1@1"


@metric("rouge_l_f1", source="MUSE, arXiv:2407.06460, section 3.1, and its code")
def rouge_l_f1(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean ROUGE-L F1 over rows, in [0, 1], without a stemmer.

    Splits whose name starts with ``forget`` are better when lower. Equals
    ``RougeScorer(["rougeL"], use_stemmer=False)`` of rouge_score 0.1.2, its fmeasure.
    """
    answers = answers_of(measured, split, task)
    values = [max(f1(reference, a.completion) for reference in a.references) for a in answers]
    better = direction("forget" if split.startswith("forget") else split)
    return mean_score(
        "rouge_l_f1", split, values, better, subjects=subjects_of(answers), task=task,
        definition=DEFINITION, by_row=True,
    )  # fmt: skip


def f1(target: str, prediction: str) -> float:
    """ROUGE-L F1 of one text, in [0, 1].

    Example:
        >>> round(f1("the cat sat on the mat", "the cat sat"), 4)
        0.6667
    """
    wanted, given = (tuple(LATIN.findall(text.lower())) for text in (target, prediction))
    common = longest_common_subsequence(wanted, given) if wanted and given else 0
    return 2 * common / (len(wanted) + len(given)) if common else 0.0
