"""Options of several commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mergeforget.distributed import is_main
from mergeforget.parsing import printable

F = TypeVar("F", bound=Callable[..., Any])


def run_argument(command: F) -> F:
    """Add ``[RUN]``, a run folder, passed as ``run: Path | None``; None is the newest run."""
    return click.argument("run", required=False, type=click.Path(path_type=Path))(command)


def json_option(command: F) -> F:
    """Add ``--json``, passed as ``as_json: bool``."""
    text = "Print one JSON object on stdout instead of text."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def template_options(command: F) -> F:
    """Add ``--template`` and ``--system-prompt``, passed as ``template`` and ``system_prompt``."""
    command = click.option("--system-prompt", metavar="TEXT", help="System message of the chat.")(
        command
    )
    return click.option(
        "--template",
        type=click.Choice(["auto", "none", "chat"]),
        help="Prompts: raw (none), with the tokenizer's chat template (chat), or with the template "
        "if there is one (auto).  [default: the recipe's, else auto]",
    )(command)


def turns_option(command: F) -> F:
    """Add ``--turns``, passed as ``turns``."""
    return click.option(
        "--turns",
        type=click.Choice(["last", "every"]),
        help="Assistant turns of a conversation that become rows.  [default: the recipe's, else "
        "last; in unlearn, every]",
    )(command)


def set_option(command: F) -> F:
    """Add ``--set key.of.recipe=value``, repeatable, passed as ``settings``."""
    text = "Set one recipe key, for example --set pair.over.learning_rate=2e-4. Repeatable."
    return click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=text)(command)


def training_options(command: F) -> F:
    """Add the options of the training commands, named as in ``api.options.TrainingOptions``."""
    file = click.Path(path_type=Path)
    command = json_option(set_option(command))
    for option in (
        click.option("--resume", is_flag=True, help="Resume an interrupted run."),
        click.option("--out", type=file, help="Run folder.  [default: runs/RECIPE-TIME]"),
        turns_option,
        template_options,
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            help="Maximum number of rows per set; keeps whole documents and the proportions of "
            "tasks.",
        ),
        click.option(
            "--holdout",
            type=file,
            help="Rows of the same kind that are in neither set, used as non-members.  [default: "
            "forget rows beyond --limit; for recipes with `until`, perturbed twins; else none]",
        ),
        click.option("--retain", type=file, help="Rows whose answers are to be kept."),
        click.option(
            "--forget",
            type=file,
            help="Rows to forget: a file (JSON Lines, JSON, parquet, csv, tsv, text), a folder, or "
            "a data set on the Hub.",
        ),
        click.option("--model", help="Hub id, folder, or `smollm2`.  [default: the recipe's]"),
    ):
        command = option(command)
    return command


def dtype_option(command: F) -> F:
    """Add ``--dtype``, the dtype of a whole model."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Dtype of a whole model; auto keeps the base's.",
    )(command)


def chosen_run(folder: Path | None) -> Any:
    """Return the run folder; print its name if none was given."""
    from mergeforget.console import say
    from mergeforget.run import open_run

    run = open_run(folder)
    if folder is None:
        say(f"Run: {run.root}")
    return run


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result as one JSON object or as text; only the main process prints."""
    if not is_main():
        return
    click.echo(json.dumps(result, ensure_ascii=False, default=str) if as_json else printable(text))
