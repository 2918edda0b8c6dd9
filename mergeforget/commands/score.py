"""`mergeforget score`: score existing generations without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import emit, json_option


@click.command("score")
@click.argument(
    "generations", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--mia",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with document losses (id, member, nll), or with the AUC (mia_auc, mia_loss_acc).",
)
@click.option(
    "--mmlu",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with MMLU's average (mmlu, mmlu_average, average_acc).",
)
@click.option(
    "--benchmark",
    default="semeval2025-task4",
    show_default=True,
    help="semeval2025-task4 (counts Latin words only, as its script does) or custom (any script).",
)
@json_option
def command(
    generations: tuple[Path, ...],
    mia: Path | None,
    mmlu: Path | None,
    benchmark: str,
    as_json: bool,
) -> None:
    """Score existing generations; no model is loaded.

    GENERATIONS are files or folders: answers/MODEL.jsonl of a run, or forget_0.csv and retain_0.csv
    as the official script of SemEval-2025 Task 4 writes them.
    """
    from mergeforget.api.runs import score
    from mergeforget.evaluate.table import render

    scores = score(generations, mia=mia, mmlu=mmlu, benchmark=benchmark)
    result: dict[str, Any] = {"scores": [s.to_dict() for s in scores["value"]]}
    if scores.terms:
        result["terms"] = scores.terms
    emit(result, render(scores), as_json)
