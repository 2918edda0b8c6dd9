"""Train a pair of adapters, or a single one, from a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.results import UnlearningRun, optional_path

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe

Settings = Mapping[str, Any] | Iterable[str]


def train_pair(
    model: str | Path | None = None,
    *,
    recipe: str | Path | Recipe = "zjuklab",
    forget: str | Path | None = None,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    limit: int | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    memorise: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    settings: Settings = (),
) -> UnlearningRun:
    """Train the over- and the under-forgetting adapter of a recipe.

    Without a model and without data, the embedded model and made-up people are used, and the model
    memorises them first.

    Args:
        model: Hub id, folder, or ``smollm2``; the recipe's model when omitted.
        recipe: Name of a packaged recipe, path of a YAML file, or a loaded recipe.
        forget: Rows to forget (JSON Lines, parquet, csv or column-oriented JSON).
        retain: Rows to keep.
        holdout: Rows of the same kind that no training sees: the non-members.
        limit: Maximum number of rows of each set, by whole documents.
        template: How prompts are rendered: raw (``none``), with the tokenizer's chat template, or
            ``auto``, which is chat where there is one; the recipe's when omitted.
        system_prompt: System message of a chat.
        memorise: Fine-tune the model on forget and retain first.
        out: Run folder; ``runs/RECIPE-TIME`` when omitted.
        resume: Continue a run that was interrupted.
        settings: Recipe keys to change: ``{"pair.over.epochs": 3}`` or ``["pair.over.epochs=3"]``.

    Returns:
        The run, with ``run.over`` and ``run.under``.

    Raises:
        RecipeError: The recipe is not valid, or names no data.
        InputError: The data or the model cannot be read, or ``out`` holds another run.
        NumericError: A training diverged or did not move.
        ResourceError: Another process writes to the folder, or memory is short.
    """
    from mergeforget.data.people import made_up
    from mergeforget.run import new_run
    from mergeforget.train.pair import train_pair as train

    chosen = _recipe(recipe, settings)
    data = _data(
        forget=forget,
        retain=retain,
        holdout=holdout,
        limit=limit,
        template=template,
        system_prompt=system_prompt,
    )
    if model is None and not (forget or retain or chosen.data.forget):
        data |= made_up()
        memorise = True
    chosen = _changed(chosen, model, data)
    run = new_run(optional_path(out), chosen.name, resume=resume)
    return UnlearningRun(train(chosen, run, memorise_first=memorise, resume=resume))


def train(
    recipe: str | Path | Recipe,
    *,
    side: Literal["over", "under"] = "over",
    model: str | Path | None = None,
    forget: str | Path | None = None,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    limit: int | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    settings: Settings = (),
) -> UnlearningRun:
    """Train one adapter with any objective; a recipe with ``full`` trains the model itself.

    Args:
        recipe: Name of a packaged recipe, path of a YAML file, or a loaded recipe.
        side: Which training to use of a recipe that holds a pair.
        model, forget, retain, holdout, limit, template, system_prompt, out, resume, settings: See
            :func:`train_pair`.

    Returns:
        The run; the result is in ``run.root / "adapter"``, or in ``"model"`` with ``full``.

    Raises:
        RecipeError, InputError, NumericError, ResourceError: As :func:`train_pair`.
    """
    from mergeforget.run import new_run
    from mergeforget.train.single import train_single

    chosen = _recipe(recipe, settings)
    data = _data(
        forget=forget,
        retain=retain,
        holdout=holdout,
        limit=limit,
        template=template,
        system_prompt=system_prompt,
    )
    chosen = _changed(chosen, model, data)
    run = new_run(optional_path(out), chosen.name, resume=resume)
    train_single(chosen, run, side=side, resume=resume)
    return UnlearningRun(run)


def assignments_of(settings: Settings) -> list[str]:
    """Recipe changes as ``key=value`` texts, values in YAML.

    >>> assignments_of({"pair.over.epochs": 3, "data.columns": {"input": "question"}})
    ['pair.over.epochs=3', 'data.columns={"input": "question"}']
    """
    import json

    if isinstance(settings, Mapping):  # JSON is YAML, on one line
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return list(settings)


def _recipe(recipe: str | Path | Recipe, settings: Settings) -> Recipe:
    from mergeforget.errors import UsageError
    from mergeforget.recipe import Recipe, load_recipe

    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, assignments_of(settings))
    if assignments_of(settings):
        raise UsageError("settings change a recipe that is read by name or path. Change a loaded "
                         "recipe with mergeforget.recipe.change().")  # fmt: skip
    return recipe


def _data(**given: str | Path | int | None) -> dict[str, Any]:
    """The section ``data`` of a recipe: what is given, paths as text."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}


def _changed(recipe: Recipe, model: str | Path | None, data: dict[str, Any]) -> Recipe:
    from mergeforget.recipe import change

    return change(recipe, data=data, model={"name": str(model)} if model else {})
