"""Scores and answers of a model on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mergeforget.data.schema import AnswerLikelihood, Measured
from mergeforget.files import read_jsonl, whole, write_jsonl
from mergeforget.score import Score


def write_subject(
    scores_path: Path,
    answers: Path,
    subject: str,
    measured: Measured,
    scores: Sequence[Score],
    *,
    parquet: bool = False,
) -> None:
    """Write a model's answers and document losses, then its scores in the place of older ones.

    Scores of the halves of a search (parts choose and report) stay as they are.

    Args:
        parquet: write the answers as parquet as well.
    """
    write_answers(answers, subject, measured, parquet=parquet)
    others = [
        row
        for row in read_jsonl(scores_path)
        if row.get("subject") != subject or row.get("part", "all") != "all"
    ]
    new = [{"subject": subject, **score.to_dict()} for score in scores]
    write_jsonl(scores_path, [*others, *new])


def write_answers(folder: Path, subject: str, measured: Measured, *, parquet: bool = False) -> None:
    """``SUBJECT.jsonl``: what it answered; ``SUBJECT.losses.jsonl``: likelihood of documents.

    ``SUBJECT.likelihoods.jsonl``: of the answers, which another evaluation can compare with.
    """
    losses = [
        {"id": d.id, "member": d.member, "task": d.task, "membership": measured.membership,
         "nll": d.nll, "signals": d.signals}
        for d in measured.losses
    ]  # fmt: skip
    write_jsonl(folder / f"{subject}.losses.jsonl", losses)
    likelihoods = [_likelihood(one) for one in measured.likelihoods]
    write_jsonl(folder / f"{subject}.likelihoods.jsonl", likelihoods)
    answers = [{**a.row.to_dict(), "completion": a.completion} for a in measured.answers]
    if parquet:
        _write_parquet(folder / f"{subject}.parquet", answers)
    write_jsonl(folder / f"{subject}.jsonl", answers)


def _likelihood(one: AnswerLikelihood) -> dict[str, Any]:
    """One answer's likelihoods; of the row what names it."""
    row = {"id": one.row.id, "task": one.row.task, "split": one.row.split}
    values = {f.name: getattr(one, f.name) for f in fields(one) if f.name != "row"}
    return row | values | {"perturbed": list(one.perturbed)}


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    with whole(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)


def read_scores(path: Path, part: str = "all") -> dict[str, list[Score]]:
    """Scores of one part by subject, in the order of the file."""
    found: dict[str, list[Score]] = {}
    for row in read_jsonl(path):
        score = Score.from_dict(row)
        if score.part == part:
            found.setdefault(str(row["subject"]), []).append(score)
    return found
