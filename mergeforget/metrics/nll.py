"""Mean negative log-likelihood of answers or documents."""

from __future__ import annotations

from dataclasses import replace

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._rows import likelihoods_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Better, Score

DEFINITIONS = {"answer": "answer-nll@1", "document": "document-nll@1"}


@metric(
    "nll", source="cross entropy; for documents as in SemEval-2025 Task 4's membership inference"
)
def nll(measured: Measured, split: str, task: str = "") -> Score | None:
    """Mean over rows of the mean negative log-likelihood of their tokens, in nats.

    Scores the answers given their prompts, or whole documents on ``holdout`` and if only documents
    were measured. Higher is better on the forget set, lower on the others.
    """
    rows = likelihoods_of(measured, split, task)
    values, subjects = [one.nll for one in rows], subjects_of(rows)
    unit = "answer" if values else "document"
    if not values and split in ("forget", "holdout"):
        member = split == "forget"
        documents = [
            d for d in measured.losses if d.member == member and (not task or d.task == task)
        ]
        values, subjects = [d.nll for d in documents], [d.subject for d in documents]
    better: Better = "higher" if split == "forget" else "lower"
    score = mean_score(
        "nll",
        split,
        values,
        better,
        subjects=subjects,
        bounded=False,
        task=task,
        definition=DEFINITIONS[unit],
    )
    if score is not None and score.interval is not None:  # no text has a likelihood above 1
        score = replace(score, interval=(max(0.0, score.interval[0]), score.interval[1]))
    return score
