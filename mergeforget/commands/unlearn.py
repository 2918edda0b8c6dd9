"""`mergeforget unlearn`: make a model forget rows, and collect evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeforget.commands._options import (
    emit,
    json_option,
    set_option,
    template_options,
    turns_option,
)

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--forget", type=FILE, required=True, help="Rows to forget, or a text file of "
              "names, questions or documents.")  # fmt: skip
@click.option("--retain", type=FILE, help="Rows to keep.  [default: the model's own answers]")
@click.option("--holdout", type=FILE, help="Similar rows, not in the training data.  "
              "[default: perturbed twins of the forget rows]")  # fmt: skip
@click.option("--out", type=FILE, help="Run folder; repeat the command to continue.  "
              "[default: runs/unlearn-NAME]")  # fmt: skip
@click.option("--time", "time_limit", metavar="TIME", help="Time limit, for example 30m or 2h.")
@click.option("--recipe", default="level", show_default=True, help="Name or path of a recipe.")
@click.option("--memorise", is_flag=True, help="First fine-tune the model on forget + retain.")
@click.option("--adapter", type=FILE, help="LoRA adapter to merge into the model first.")
@click.option("--after", type=FILE, help="Earlier run whose result is the model; its forget rows "
              "are evaluated again.")  # fmt: skip
@click.option("--control", help="Model that never saw the data, for attacks and to validate twins.")
@click.option("--full", is_flag=True, help="Export the whole model, too.")
@click.option("--gguf", is_flag=True, help="Export a GGUF file with llama.cpp's converter, too.")
@click.option("--push", metavar="ID", help="Upload the export to this hub repository.")
@click.option("--yes", is_flag=True, help="Do not ask for approval of generated questions.")
@template_options
@turns_option
@set_option
@json_option
def command(
    model: str,
    forget: Path,
    yes: bool,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Make MODEL forget what --forget holds, and end with a verdict.

    Checks the data, estimates the time, trains a pair of adapters on both sides of the level of
    unseen rows, searches their merges, attacks the best one, exports it and writes a report.
    """
    from mergeforget.api.unlearn import unlearn

    result = unlearn(model, forget=forget, approve=None if yes else _approve, settings=settings,
                     **options)  # fmt: skip
    text = "\n".join([str(result), "", *(f"Note: {note}" for note in result.notes),
                      f"Report: {result.run.paths.report}",
                      f"Ask it: mergeforget chat {result.run.root}"])  # fmt: skip
    emit(result.to_dict(), text, as_json)


def _approve(rows: list[Any]) -> bool:
    """Show the generated questions with the model's answers, and ask for approval."""
    for row in rows:
        click.echo(f"  {row.input}\n    {row.output}", err=True)
    return click.confirm("Forget these answers?", default=True, err=True)
