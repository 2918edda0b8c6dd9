"""`mergeforget recipes`: list, explain and copy the packaged recipes."""

from __future__ import annotations

from pathlib import Path

import click

from mergeforget.commands._options import emit, json_option


@click.group("recipes")
def command() -> None:
    """List, explain and copy the packaged recipes."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the packaged recipes with their sources."""
    from mergeforget.api.catalog import available

    packaged = available("recipes")
    width = max(map(len, packaged))
    lines = [f"{n:<{width}}  {f['trains']:<11}  {f['source']}" for n, f in packaged.items()]
    emit(packaged, "\n".join(lines), as_json)


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Explain a recipe: source, published scores, objective in words, settings."""
    from mergeforget.api.catalog import explain_recipe, objective_in_words
    from mergeforget.recipe import load_recipe

    text, recipe = explain_recipe(name), load_recipe(name)
    words = {place: objective_in_words(t) for place, t in recipe.trainings().items()}
    emit({**recipe.model_dump(mode="json"), "in_words": words}, text, as_json)


@command.command("copy")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def copy(name: str, file: Path | None, force: bool, as_json: bool) -> None:
    """Copy a recipe to FILE (default: NAME.yaml), including its comments."""
    from mergeforget.api.catalog import copy_recipe

    written = copy_recipe(name, file, force=force)
    text = f"{written}: change it, then use it with --recipe {written}"
    emit({"file": str(written)}, text, as_json)
