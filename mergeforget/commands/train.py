"""`mergeforget train`: train one adapter, or the model itself."""

from __future__ import annotations

from typing import Any, Literal

import click

from mergeforget.commands._options import emit, training_options


@click.command()
@click.option("--recipe", required=True, help="Name or path of a recipe.")
@click.option(
    "--side",
    type=click.Choice(["over", "under"]),
    default="over",
    show_default=True,
    help="Side to train, if the recipe describes a pair.",
)
@training_options
def command(recipe: str, side: Literal["over", "under"], as_json: bool, **options: Any) -> None:
    """Train one adapter with any objective; a recipe with `full` trains the model itself."""
    from mergeforget.api.training import train

    run = train(recipe, side=side, **options)
    what = "model" if run.recipe.training(side).full else "adapter"
    emit({"run": str(run.root), what: str(run.root / what)}, f"Trained {run.root / what}.", as_json)
