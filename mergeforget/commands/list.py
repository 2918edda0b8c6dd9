"""`mergeforget list`: the members of a family, with arguments, defaults and sources."""

from __future__ import annotations

from typing import Any

import click

from mergeforget.commands._options import emit, json_option

FAMILIES = ("losses", "methods", "metrics", "benchmarks", "transforms", "attacks", "recipes")
# arguments that the merge engine or the evaluation supplies and no user sets
SUPPLIED = (
    "generator", "grams", "cuts", "l1_factors", "importance", "contrast", "shares", "base_weights",
    "known",
)  # fmt: skip


@click.command("list")
@click.argument("family", type=click.Choice(FAMILIES))
@json_option
def command(family: str, as_json: bool) -> None:
    """List losses, merge methods, metrics, benchmarks, transforms, attacks or recipes.

    The arguments shown are what a recipe may set, for example `{loss: npo, on: forget, beta: 0.1}`.
    """
    if family == "recipes":
        from mergeforget.commands.recipes import list_

        click.get_current_context().invoke(list_, as_json=as_json)
        return
    found = {shown_name(family, entry.name): facts(entry) for entry in entries(family)}
    emit(found, "\n".join(_text(name, one) for name, one in found.items()), as_json)


def entries(family: str) -> list[Any]:
    """Every member of a family, sorted by name."""
    if family == "transforms":
        from mergeforget.data.transforms import TRANSFORMS

        return [TRANSFORMS[name] for name in sorted(TRANSFORMS)]
    registry = _registry(family)
    return [registry.get(name) for name in registry.names()]


def shown_name(family: str, name: str) -> str:
    """Return the name as documentation and options write it: benchmarks have dashes."""
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


def _text(name: str, one: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={_shown(value)}" for key, value in one["arguments"].items())
    heading = f"{name}({arguments})" if arguments else name
    return f"{heading}\n    {one['does'].replace('``', '')}\n    {one['source']}"


def _shown(value: Any) -> Any:
    """Return a default as it is typed on the command line: values of a list joined by commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "''" if value == "" else value
