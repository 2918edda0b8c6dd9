"""`mergeforget list`: list the members of a family, with arguments, defaults and sources."""

from __future__ import annotations

from typing import Any

import click

from mergeforget.api.catalog import FAMILIES
from mergeforget.commands._options import emit, json_option


@click.command("list")
@click.argument("family", type=click.Choice(FAMILIES))
@json_option
def command(family: str, as_json: bool) -> None:
    """List losses, merge methods, metrics, benchmarks, transforms, attacks or recipes.

    A recipe may set the arguments, for example `{loss: npo, on: forget, beta: 0.1}`.
    """
    from mergeforget.api.catalog import available

    if family == "recipes":
        from mergeforget.commands.recipes import list_

        click.get_current_context().invoke(list_, as_json=as_json)
        return
    members = available(family)
    emit(members, "\n".join(_text(name, one) for name, one in members.items()), as_json)


def _text(name: str, one: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={_shown(value)}" for key, value in one["arguments"].items())
    heading = f"{name}({arguments})" if arguments else name
    return f"{heading}\n    {one['does'].replace('``', '')}\n    {one['source']}"


def _shown(value: Any) -> Any:
    """Return a default as it is typed on the command line: values of a list joined by commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "''" if value == "" else value
