"""Scores and answers of a model on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergeforget.data.schema import Measured
from mergeforget.files import read_jsonl, write_jsonl
from mergeforget.score import Score


def write_subject(
    scores_path: Path, answers: Path, subject: str, measured: Measured, scores: Sequence[Score]
) -> None:
    """Write a model's answers and document losses, then its scores in the place of older ones.

    Scores of the halves of a search (parts choose and report) stay as they are.
    """
    write_answers(answers, subject, measured)
    others = [
        row
        for row in read_jsonl(scores_path)
        if row.get("subject") != subject or row.get("part", "all") != "all"
    ]
    new = [{"subject": subject, **score.to_dict()} for score in scores]
    write_jsonl(scores_path, [*others, *new])


def write_answers(folder: Path, subject: str, measured: Measured) -> None:
    """``SUBJECT.jsonl``: what it answered; ``SUBJECT.losses.jsonl``: likelihood of documents."""
    losses = [
        {"id": d.id, "member": d.member, "task": d.task, "nll": d.nll, "signals": d.signals}
        for d in measured.losses
    ]
    write_jsonl(folder / f"{subject}.losses.jsonl", losses)
    answers = [{**a.row.to_dict(), "completion": a.completion} for a in measured.answers]
    write_jsonl(folder / f"{subject}.jsonl", answers)


def read_scores(path: Path, part: str = "all") -> dict[str, list[Score]]:
    """Scores of one part by subject, in the order of the file."""
    found: dict[str, list[Score]] = {}
    for row in read_jsonl(path):
        score = Score.from_dict(row)
        if score.part == part:
            found.setdefault(str(row["subject"]), []).append(score)
    return found
