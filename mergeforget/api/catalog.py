"""List the members of the package and its plugins, and read the packaged recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    from mergeforget.train.explain import explain

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
        InputError: The file exists already.
    """
    from mergeforget.errors import InputError
    from mergeforget.files import write_text
    from mergeforget.parsing import read_text
    from mergeforget.recipe import load_recipe, recipe_path

    load_recipe(name)
    source = recipe_path(name)
    target = Path(file) if file else Path(source.name)
    if target.exists() and not force:
        raise InputError(f"{target} exists already. Replace it with --force.")
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
