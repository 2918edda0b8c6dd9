"""`mergeforget train-pair`: train the over- and the under-forgetting adapter."""

from __future__ import annotations

from typing import Any

import click

from mergeforget.commands._options import emit, training_options


@click.command()
@click.option("--recipe", default="zjuklab", show_default=True, help="Name or path of a recipe.")
@click.option("--memorise", is_flag=True, help="Fine-tune the model on forget and retain first.")
@training_options
def command(recipe: str, memorise: bool, as_json: bool, **options: Any) -> None:
    """Train the over- and the under-forgetting adapter.

    Without --model, --forget and --retain, the embedded model and made-up people are used, and the
    model memorises them first.
    """
    from mergeforget.api.training import train_pair

    run = train_pair(recipe=recipe, memorise=memorise, **options).paths
    result = {"run": str(run.root), "over": str(run.over), "under": str(run.under)}
    text = f"Trained {run.over} and {run.under}.\nNext: mergeforget search {run.root}"
    emit(result, text, as_json)
