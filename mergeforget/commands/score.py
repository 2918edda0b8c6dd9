"""`mergeforget score`: texts that exist already, scored without a model."""

from __future__ import annotations

from pathlib import Path

import click

from mergeforget.commands._options import emit, json_option


@click.command("score")
@click.argument(
    "generations", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--mia",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Document losses (id, member, nll), or a file with the AUC (mia_auc, mia_loss_acc).",
)
@click.option(
    "--mmlu",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with MMLU's average (mmlu, mmlu_average, average_acc).",
)
@json_option
def command(
    generations: tuple[Path, ...], mia: Path | None, mmlu: Path | None, as_json: bool
) -> None:
    """Score generations by SemEval-2025 Task 4; loads no model.

    GENERATIONS are files, or folders of them: answers/MODEL.jsonl of a run, or forget_0.csv and
    retain_0.csv as the task's own script writes them.
    """
    from mergeforget.benchmarks.semeval2025_task4 import task_names, terms
    from mergeforget.evaluate.table import render
    from mergeforget.evaluate.texts import score_texts

    measured, scores = score_texts(generations, mia=mia, mmlu=mmlu)
    result = {
        "scores": [s.to_dict() for s in scores],
        "terms": terms(scores, task_names(measured)),
    }
    emit(result, render({"value": scores}), as_json)
