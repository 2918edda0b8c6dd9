"""`mergeforget train`: train one adapter, or the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from mergeforget.commands._options import emit, json_option, set_option, template_options

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--recipe", required=True, help="Name or path of a recipe.")
@click.option(
    "--side",
    type=click.Choice(["over", "under"]),
    default="over",
    show_default=True,
    help="Side to train, if the recipe describes a pair.",
)
@click.option("--model", help="Hub id, folder, or `smollm2`.  [default: the recipe's]")
@click.option(
    "--forget", type=FILE, help="Rows to forget: JSON Lines, parquet, csv or column-oriented JSON."
)
@click.option("--retain", type=FILE, help="Rows to keep.")
@click.option(
    "--holdout", type=FILE, help="Rows of the same kind that are in neither set: the non-members."
)
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of rows per set.")
@template_options
@click.option("--out", type=FILE, help="Run folder.  [default: runs/RECIPE-TIME]")
@click.option("--resume", is_flag=True, help="Resume an interrupted run.")
@set_option
@json_option
def command(
    recipe: str,
    side: Literal["over", "under"],
    model: str | None,
    forget: Path | None,
    retain: Path | None,
    holdout: Path | None,
    limit: int | None,
    template: Literal["auto", "none", "chat"] | None,
    system_prompt: str | None,
    out: Path | None,
    resume: bool,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train one adapter with any objective; a recipe with `full` trains the model itself."""
    from mergeforget.api.training import train

    run = train(
        recipe,
        side=side,
        model=model,
        forget=forget,
        retain=retain,
        holdout=holdout,
        limit=limit,
        template=template,
        system_prompt=system_prompt,
        out=out,
        resume=resume,
        settings=assignments,
    )
    what = "model" if run.recipe.training(side).full else "adapter"
    emit({"run": str(run.root), what: str(run.root / what)}, f"Trained {run.root / what}.", as_json)
