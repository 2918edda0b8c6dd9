"""List the members of the package and its plugins; list, explain and copy recipes."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe
    from mergeforget.train_config import Term, Training

TITLES = {
    "train": "One adapter",
    "pair.over": "The adapter that forgets too much (over)",
    "pair.under": "The adapter that forgets too little (under)",
}
FAMILIES = ("losses", "methods", "metrics", "benchmarks", "transforms", "attacks", "recipes")
# arguments that the merge engine or the evaluation supplies
SUPPLIED = (
    "generator", "grams", "cuts", "l1_factors", "importance", "contrast", "shares", "base_weights",
    "known",
)  # fmt: skip


def available(family: str) -> dict[str, dict[str, Any]]:
    """List losses, methods, metrics, benchmarks, transforms, attacks or recipes.

    Args:
        family: Name of the family.

    Returns:
        By name: a summary (``does``), ``arguments`` with their defaults (``required`` without one)
        and ``source``; for a recipe what it ``trains``, its ``source`` and ``published`` scores.

    Raises:
        UnknownNameError: There is no such family.

    Examples:
        >>> import mergeforget as mf
        >>> mf.available("losses")["npo"]["arguments"]["beta"]
        0.1
    """
    from mergeforget.errors import UnknownNameError

    if family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    if family == "recipes":
        return _recipes()
    return {shown_name(family, entry.name): facts(entry) for entry in entries(family)}


def explain_recipe(name: str | Path) -> str:
    """Explain a recipe: source, published scores, objective in words, settings.

    Args:
        name: Name of a packaged recipe, or path of a YAML file.

    Raises:
        RecipeError: There is no such recipe, or it is not valid.
    """
    from mergeforget.recipe import load_recipe

    return explain(load_recipe(name))


def copy_recipe(name: str, file: str | Path | None = None, *, force: bool = False) -> Path:
    """Copy a packaged recipe, including its comments.

    Args:
        name: Name of a packaged recipe, or path of a YAML file.
        file: File to write; ``NAME.yaml`` when omitted.
        force: Replace an existing file.

    Returns:
        The file.

    Raises:
        RecipeError: There is no such recipe.
        InputError: The file already exists.
    """
    from mergeforget.errors import InputError
    from mergeforget.files import write_text
    from mergeforget.parsing import read_text
    from mergeforget.recipe import load_recipe, recipe_path

    load_recipe(name)
    source = recipe_path(name)
    target = Path(file) if file else Path(source.name)
    if target.exists() and not force:
        raise InputError(f"{target} already exists. Replace it with --force.")
    write_text(target, read_text(source))
    return target


def _recipes() -> dict[str, dict[str, Any]]:
    from mergeforget.recipe import load_recipe, recipe_names

    found = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        trains = "pair" if recipe.pair is not None else "one adapter"
        found[name] = {"trains": trains, "source": recipe.source, "published": recipe.published}
    return found


def entries(family: str) -> list[Any]:
    """Return the members of a family, sorted by name."""
    if family == "transforms":
        from mergeforget.data.transforms import TRANSFORMS

        return [TRANSFORMS[name] for name in sorted(TRANSFORMS)]
    registry = _registry(family)
    return [registry.get(name) for name in registry.names()]


def shown_name(family: str, name: str) -> str:
    """Return the name as in documentation and options: benchmarks have dashes."""
    return name.replace("_", "-") if family == "benchmarks" else name


def facts(entry: Any) -> dict[str, Any]:
    """Return summary, arguments and source of one member.

    An argument without a default has the value ``required``.
    """
    defaults = {
        name: "required" if p.default is p.empty else p.default
        for name, p in entry.parameters.items()
        if name not in SUPPLIED
    }
    return {"does": entry.summary, "arguments": defaults, "source": entry.source}


def _registry(family: str) -> Any:
    if family == "losses":
        from mergeforget.losses import UNLEARNING_LOSSES

        return UNLEARNING_LOSSES
    if family == "methods":
        from mergeforget.merge.methods import MERGE_METHODS

        return MERGE_METHODS
    if family == "metrics":
        from mergeforget.metrics import METRICS

        return METRICS
    if family == "attacks":
        from mergeforget.attack.methods import ATTACKS

        return ATTACKS
    from mergeforget.benchmarks import BENCHMARKS

    return BENCHMARKS


def explain(recipe: Recipe) -> str:
    """Return a description: source, published results, objective in words, settings.

    Raises:
        UnknownNameError: The recipe names an unknown loss.
    """
    parts = [recipe.name, _wrapped(recipe.source), _wrapped(recipe.notes)]
    parts.append(_published(recipe.published))
    previous: dict[str, Any] = {}
    for key, training in recipe.trainings().items():
        parts.append(_training(key, training, previous))
        previous = settings(training)
    if recipe.pair is not None:
        parts.append("Merge and search\n" + "\n".join(_settings(_after(recipe))))
    return "\n\n".join(part for part in parts if part)


def objective_in_words(training: Training) -> list[str]:
    """Return one line per term: weight, loss, set, arguments, and a summary of the loss."""
    return [_term(term) for term in training.objective]


def settings(training: Training) -> dict[str, Any]:
    """Return the settings except the objective; sections list only keys that are set."""
    values = training.model_dump(mode="json", exclude={"objective"})
    return {key: value for key, value in values.items() if value not in (None, [], {}, "")}


def _training(key: str, training: Training, before: dict[str, Any]) -> str:
    """Describe one training, with the settings that differ from the previous one."""
    from mergeforget.train.objective import describe

    lines = [f"{TITLES[key]} minimises {describe(training)}", *objective_in_words(training)]
    changed = {k: v for k, v in settings(training).items() if before.get(k) != v}
    if before:
        lines.append("  its settings are as above" + (", but:" if changed else ""))
    return "\n".join(lines + _settings(changed))


def _term(term: Term) -> str:
    from mergeforget.losses import UNLEARNING_LOSSES

    entry = UNLEARNING_LOSSES.get(term.loss)
    chosen = {name: p.default for name, p in entry.parameters.items()} | term.arguments
    arguments = ", ".join(f"{name} {value}" for name, value in chosen.items())
    suffix = f" ({arguments})" if arguments else ""
    return (
        f"  {term.weight:g} x {entry.name} on the {term.on} set{suffix}\n"
        f"      {entry.summary.replace('``', '')}\n      {entry.source}"
    )


def _settings(values: dict[str, Any]) -> list[str]:
    width = max((len(key) for key in values), default=0)
    return [f"  {key:<{width}}  {_plain(value)}" for key, value in values.items()]


def _published(figures: dict[str, Any]) -> str:
    if not figures:
        return ""
    return "Published figures\n" + "\n".join(_settings(figures))


def _after(recipe: Recipe) -> dict[str, Any]:
    sections = {"merge": recipe.merge, "search": recipe.search}
    return {name: part.model_dump(mode="json") for name, part in sections.items()}


def _plain(value: Any) -> str:
    """Return a value of a recipe on one line."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if v not in (None, [], {})}
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in kept.items())
    if isinstance(value, list):
        items = ", ".join(_plain(inner) for inner in value)
        return f"[{items}]"
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if value == " " else str(value)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100)
