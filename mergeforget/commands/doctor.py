"""`mergeforget doctor`: check the machine and the installation."""

from __future__ import annotations

import click

from mergeforget.commands._options import emit, json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Report versions, devices, memory, disk and extras, and a remedy for each problem."""
    from mergeforget.api.doctor import doctor

    facts, problems = doctor()
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    lines += ["", *(f"Problem: {problem}" for problem in problems)] if problems else []
    emit(facts | {"problems": problems}, "\n".join(lines), as_json)
