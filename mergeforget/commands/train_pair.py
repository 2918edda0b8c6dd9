"""`mergeforget train-pair`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import emit, json_option, set_option

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--recipe", default="zjuklab", show_default=True, help="Name or path of a recipe.")
@click.option("--model", help="Hub id, folder, or `smollm2`.  [default: the recipe's]")
@click.option("--forget", type=FILE, help="Rows to forget: jsonl, parquet, csv or column json.")
@click.option("--retain", type=FILE, help="Rows to keep.")
@click.option("--holdout", type=FILE, help="Rows of the same kind, in neither: non-members.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Use at most so many rows of each set, whole documents, every task in its share.",
)
@click.option("--memorise", is_flag=True, help="First fine-tune the model on forget + retain.")
@click.option("--out", type=FILE, help="Run folder.  [default: runs/RECIPE-TIME]")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@set_option
@json_option
def command(
    recipe: str,
    model: str | None,
    forget: Path | None,
    retain: Path | None,
    holdout: Path | None,
    limit: int | None,
    memorise: bool,
    out: Path | None,
    resume: bool,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the over- and the under-forgetting adapter.

    Without --model, --forget and --retain the embedded model and made-up people are used, and the
    model memorises them first.
    """
    from mergeforget.data.people import made_up
    from mergeforget.recipe import change, load_recipe
    from mergeforget.run import new_run
    from mergeforget.train.pair import train_pair

    chosen = load_recipe(recipe, assignments)
    given = {"forget": forget, "retain": retain, "holdout": holdout, "limit": limit}
    data: dict[str, Any] = {
        k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None
    }
    if model is None and not (forget or retain or chosen.data.forget):
        data |= made_up()
        memorise = True
    chosen = change(chosen, data=data, model={"name": model} if model else {})
    run = new_run(out, chosen.name, resume=resume)
    train_pair(chosen, run, memorise_first=memorise, resume=resume)
    result = {"run": str(run.root), "over": str(run.over), "under": str(run.under)}
    emit(
        result, f"Trained {run.over} and {run.under}.\nNext: mergeforget search {run.root}", as_json
    )
