"""Scores and answers of a model on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mergeforget.data.schema import AnswerLikelihood, Measured
from mergeforget.files import whole, write_jsonl
from mergeforget.score import Score, read_scores, write_scores


def write_model_scores(
    scores_path: Path,
    answers: Path,
    model: str,
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
    write_answers(answers, model, measured, parquet=parquet)
    found = read_scores(scores_path)
    found[model] = [s for s in found.get(model, []) if s.part != "all"] + list(scores)
    write_scores(scores_path, found)


def write_answers(folder: Path, model: str, measured: Measured, *, parquet: bool = False) -> None:
    """``MODEL.jsonl``: what it answered; ``MODEL.losses.jsonl``: likelihood of documents.

    ``MODEL.likelihoods.jsonl``: of the answers, which another evaluation can compare with.
    """
    losses = [
        {"id": d.id, "member": d.member, "task": d.task, "membership": measured.membership,
         "nll": d.nll, "signals": d.signals, "subject": d.subject}
        for d in measured.losses
    ]  # fmt: skip
    write_jsonl(folder / f"{model}.losses.jsonl", losses)
    likelihoods = [_likelihood(one) for one in measured.likelihoods]
    write_jsonl(folder / f"{model}.likelihoods.jsonl", likelihoods)
    answers = [{**a.row.to_dict(), "completion": a.completion} for a in measured.answers]
    if parquet:
        _write_parquet(folder / f"{model}.parquet", answers)
    write_jsonl(folder / f"{model}.jsonl", answers)


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
