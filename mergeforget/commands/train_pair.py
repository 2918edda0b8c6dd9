"""`mergeforget train-pair`: train the over- and the under-forgetting adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from mergeforget.commands._options import emit, json_option, set_option, template_options

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--recipe", default="zjuklab", show_default=True, help="Name or path of a recipe.")
@click.option("--model", help="Hub id, folder, or `smollm2`.  [default: the recipe's]")
@click.option(
    "--forget", type=FILE, help="Rows to forget: JSON Lines, parquet, csv or column-oriented JSON."
)
@click.option("--retain", type=FILE, help="Rows to keep.")
@click.option(
    "--holdout", type=FILE, help="Rows of the same kind that are in neither set: the non-members."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Maximum number of rows per set; keeps whole documents and the proportions of tasks.",
)
@click.option("--memorise", is_flag=True, help="Fine-tune the model on forget and retain first.")
@template_options
@click.option("--out", type=FILE, help="Run folder.  [default: runs/RECIPE-TIME]")
@click.option("--resume", is_flag=True, help="Resume an interrupted run.")
@set_option
@json_option
def command(
    recipe: str,
    model: str | None,
    forget: Path | None,
    retain: Path | None,
    holdout: Path | None,
    limit: int | None,
    template: Literal["auto", "none", "chat"] | None,
    system_prompt: str | None,
    memorise: bool,
    out: Path | None,
    resume: bool,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the over- and the under-forgetting adapter.

    Without --model, --forget and --retain, the embedded model and made-up people are used, and the
    model memorises them first.
    """
    from mergeforget.api.training import train_pair

    run = train_pair(
        model,
        recipe=recipe,
        forget=forget,
        retain=retain,
        holdout=holdout,
        limit=limit,
        template=template,
        system_prompt=system_prompt,
        memorise=memorise,
        out=out,
        resume=resume,
        settings=assignments,
    ).paths
    result = {"run": str(run.root), "over": str(run.over), "under": str(run.under)}
    emit(
        result, f"Trained {run.over} and {run.under}.\nNext: mergeforget search {run.root}", as_json
    )
