"""`mergeforget chat`: ask the model before and after unlearning, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import (
    chosen_run,
    emit,
    json_option,
    run_argument,
    template_options,
)


@click.command()
@run_argument
@click.option("--candidate", help="Model of the run: over, under or a candidate.  "
              "[default: the chosen merge]")  # fmt: skip
@click.option("--ask", "asked", multiple=True, help="Ask this question and exit. Repeatable.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True,
              help="Maximum tokens to generate per answer.")  # fmt: skip
@template_options
@json_option
def command(
    run: Path | None, candidate: str | None, asked: tuple[str, ...], max_new_tokens: int,
    template: Any, system_prompt: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Ask the base and the result of RUN the same questions.

    Type one question per line; an empty line exits. Prompts are rendered as in the run's recipe,
    unless --template or --system-prompt is given.
    """
    from mergeforget.api.runs import open_chat

    answer = open_chat(chosen_run(run), candidate or "", max_new_tokens, template, system_prompt)
    results = []
    for prompt in asked or _typed():
        answers: dict[str, Any] = answer(prompt)
        results.append(answers)
        if not as_json:
            click.echo(f"  before  {answers['before']}\n  after   {answers['after']}")
    if as_json:
        emit({"answers": results}, "", as_json)


def _typed() -> Iterator[str]:
    """Yield lines from the terminal or a pipe until an empty one."""
    while True:
        try:
            line = click.prompt(">", prompt_suffix=" ", default="", show_default=False, err=True)
        except click.Abort:
            return
        if not line.strip():
            return
        yield line.strip()
