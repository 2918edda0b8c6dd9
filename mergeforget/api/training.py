"""Train a pair of adapters or a single one from a recipe, and estimate the cost of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from mergeforget.api.options import Settings, TrainingOptions, accepts
from mergeforget.api.results import UnlearningRun, optional_path

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe
    from mergeforget.train.plan import Plan

DATA = ("forget", "retain", "holdout", "limit", "template", "system_prompt", "turns")


@accepts(TrainingOptions)
def train_pair(
    model: str | Path | None = None,
    *,
    recipe: str | Path | Recipe = "zjuklab",
    memorise: bool = False,
    **options: Unpack[TrainingOptions],
) -> UnlearningRun:
    """Train the over- and the under-forgetting adapter of a recipe.

    Without a model and without data, the embedded model and made-up people are used, and the model
    memorises them first.

    Args:
        model: Hub id, folder, or ``smollm2``; the recipe's model when omitted.
        recipe: Name of a packaged recipe, path of a YAML file, or a loaded recipe.
        forget: Rows to forget: a file, a folder or a data set on the Hub; see docs/data.md.
        retain: Rows to keep.
        holdout: Rows of the same kind, never trained on: the non-members.
        limit: Maximum number of rows of each set, by whole documents.
        template: How prompts are rendered: raw (``none``), with the tokenizer's chat template, or
            ``auto`` (chat if there is a template); the recipe's when omitted.
        system_prompt: System message of a chat.
        turns: Assistant turns of a conversation that become rows; the recipe's when omitted.
        memorise: Fine-tune the model on the forget and retain rows first.
        out: Run folder; ``runs/RECIPE-TIME`` when omitted.
        resume: Resume an interrupted run.
        settings: Recipe keys to change: ``{"pair.over.epochs": 3}`` or ``["pair.over.epochs=3"]``.

    Returns:
        The run, with ``run.over`` and ``run.under``.

    Raises:
        RecipeError: The recipe is not valid, or names no data.
        InputError: The data or the model cannot be read, or ``out`` holds another run.
        NumericError: A training diverged, or did not change the adapter.
        ResourceError: Another process writes to the folder, or there is too little memory.
    """
    from mergeforget.run import new_run
    from mergeforget.train.pair import train_pair as train

    chosen, invented = chosen_recipe(recipe, model, options, make_up=model is None)
    run = new_run(optional_path(options["out"]), chosen.name, resume=options["resume"])
    first = memorise or invented
    return UnlearningRun(train(chosen, run, memorise_first=first, resume=options["resume"]))


@accepts(TrainingOptions)
def train(
    recipe: str | Path | Recipe,
    *,
    side: Literal["over", "under"] = "over",
    model: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> UnlearningRun:
    """Train one adapter with any objective; a recipe with ``full`` trains the model itself.

    Args:
        recipe: Name of a packaged recipe, path of a YAML file, or a loaded recipe.
        side: Training to run if the recipe describes a pair.
        model, forget, retain, holdout, limit, template, system_prompt, turns, out, resume,
            settings: See :func:`train_pair`.

    Returns:
        The run; the result is in ``run.root / "adapter"``, or in ``"model"`` with ``full``.

    Raises:
        RecipeError, InputError, NumericError, ResourceError: As in :func:`train_pair`.
    """
    from mergeforget.run import new_run
    from mergeforget.train.pair import train_single

    chosen, _ = chosen_recipe(recipe, model, options, make_up=False)
    run = new_run(optional_path(options["out"]), chosen.name, resume=options["resume"])
    train_single(chosen, run, side=side, resume=options["resume"])
    return UnlearningRun(run)


def plan(
    recipe: str | Path | Recipe = "zjuklab",
    *,
    model: str | Path | None = None,
    forget: str | Path | Sequence[str | Path] | None = None,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    limit: int | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    turns: Literal["last", "every"] | None = None,
    settings: Settings = (),
) -> dict[str, Plan]:
    """Estimate batch size, steps, memory and time of a recipe's trainings.

    Only the model's configuration and tokenizer are read. The time assumes the speed of one large
    matrix product, measured on this machine; training takes longer, on a CPU two to three times.

    Args:
        forget: Rows to forget, or a list of files, one per request of
            :func:`mergeforget.unlearn_sequence`.
        recipe, model, retain, holdout, limit, template, system_prompt, turns, settings: As in
            :func:`train_pair`.

    Returns:
        The estimate by training: ``pair.over`` and ``pair.under``, or ``train``. With a list, the
        keys begin with the request: ``1-NAME pair.over``.

    Raises:
        RecipeError, InputError: As in :func:`train_pair`.
    """
    from mergeforget.models import default_device
    from mergeforget.train.objective import check_recipe
    from mergeforget.train.plan import matrix_speed, plan_recipe

    several = not (forget is None or isinstance(forget, str | Path))
    files: list[Any] = list(forget) if several else [forget]  # type: ignore[arg-type]
    chosen = []
    for file in files:
        options: TrainingOptions = {
            "forget": file, "retain": retain, "holdout": holdout, "limit": limit,
            "template": template,
            "system_prompt": system_prompt, "turns": turns, "settings": settings,
        }  # fmt: skip
        chosen.append(chosen_recipe(recipe, model, options)[0])
        check_recipe(chosen[-1])
    plans: dict[str, Plan] = {}
    speed = matrix_speed(default_device())
    for i, (file, one) in enumerate(zip(files, chosen, strict=True), 1):
        begin = f"{i}-{Path(file).stem} " if several else ""
        plans |= {f"{begin}{place}": plan for place, plan in plan_recipe(one, speed).items()}
    return plans


def assignments_of(settings: Settings) -> list[str]:
    """Return recipe changes as ``key=value`` texts with YAML values.

    >>> assignments_of({"pair.over.epochs": 3, "data.columns": {"input": "question"}})
    ['pair.over.epochs=3', 'data.columns={"input": "question"}']
    """
    import json

    if isinstance(settings, Mapping):  # JSON is YAML, on one line
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return list(settings)


def chosen_recipe(
    recipe: str | Path | Recipe,
    model: str | Path | None,
    options: TrainingOptions,
    *,
    make_up: bool = True,
) -> tuple[Recipe, bool]:
    """Return the recipe with the given model, data and settings.

    Args:
        make_up: Use made-up people if neither the options nor the recipe name data.

    Returns:
        The recipe, and whether its data is synthetic.
    """
    from mergeforget.data.people import made_up
    from mergeforget.errors import UsageError
    from mergeforget.recipe import Recipe, change, load_recipe

    assignments = assignments_of(options.get("settings", ()))
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, assignments)
    elif assignments:
        raise UsageError("settings apply only to a recipe given by name or path. Change a loaded "
                         "recipe with mergeforget.recipe.change().")  # fmt: skip
    given: dict[str, Any] = {k: v for k, v in options.items() if k in DATA and v is not None}
    data = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    invented = make_up and not (data.get("forget") or data.get("retain") or recipe.data.forget)
    if invented:
        data |= made_up()
    named = {"name": str(model)} if model else {}
    return change(recipe, data=data, model=named), invented
