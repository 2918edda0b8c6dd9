"""`mergeforget recipes`: the recipes that come along, what they do, and a copy to change."""

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
    from mergeforget.recipe import load_recipe, recipe_names

    found = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        trains = "pair" if recipe.pair is not None else "one adapter"
        found[name] = {"trains": trains, "source": recipe.source, "published": recipe.published}
    width = max(map(len, found))
    lines = [f"{n:<{width}}  {f['trains']:<11}  {f['source']}" for n, f in found.items()]
    emit(found, "\n".join(lines), as_json)


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Explain a recipe: source, published scores, objective in words, settings."""
    from mergeforget.recipe import load_recipe
    from mergeforget.train.explain import explain, objective_in_words

    recipe = load_recipe(name)
    words = {place: objective_in_words(t) for place, t in recipe.trainings().items()}
    emit({**recipe.model_dump(mode="json"), "in_words": words}, explain(recipe), as_json)


@command.command("copy")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def copy(name: str, file: Path | None, force: bool, as_json: bool) -> None:
    """Copy a recipe to FILE (default: NAME.yaml), including its comments."""
    from mergeforget.errors import InputError
    from mergeforget.files import write_text
    from mergeforget.parsing import read_text
    from mergeforget.recipe import load_recipe, recipe_path

    load_recipe(name)
    source = recipe_path(name)
    file = file or Path(source.name)
    if file.exists() and not force:
        raise InputError(f"{file} is there already. Replace it with --force.")
    write_text(file, read_text(source))
    emit({"file": str(file)}, f"{file}: change it, then use it with --recipe {file}", as_json)
