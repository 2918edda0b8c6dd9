"""`mergeforget unlearn`: make a model forget rows, and collect evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
@click.option("--forget", type=FILE, required=True, multiple=True, help="Rows to forget, or a text "
              "file (.txt, .md) of names, questions or documents. Repeat it to forget one set "
              "after the other.")  # fmt: skip
@click.option("--retain", type=FILE, multiple=True, help="Rows whose answers are to "
              "be kept, read as --forget is; one file per --forget, or one for all.  [default: the "
              "model's own answers]")  # fmt: skip
@click.option("--holdout", type=FILE, multiple=True, help="Similar rows that are not in the "
              "training data, read as --forget is; one file per --forget, or one for all.  "
              "[default: perturbed twins of the forget rows]")  # fmt: skip
@click.option("--merge", type=click.Choice(["each", "end"]), help="With several --forget: search a "
              "merge after each set, or one at the end.  [default: each]")  # fmt: skip
@click.option("--out", type=FILE, help="Run folder; repeat the command to continue.  "
              "[default: runs/unlearn-NAME, or runs/sequence-NAME]")  # fmt: skip
@click.option(
    "--time",
    "time_limit",
    metavar="TIME",
    help="Time after which no merge is evaluated and "
    "no attack begins, for example 30m; training is completed.",
)
@click.option("--recipe", default="level", show_default=True, help="Name or path of a recipe.")
@click.option("--memorise", is_flag=True, help="Fine-tune the model on the forget and "
              "retain rows first.")  # fmt: skip
@click.option("--adapter", type=FILE, help="LoRA adapter to merge into the model first.")
@click.option("--over", type=FILE, help="Existing over-forgetting adapter of MODEL; the other "
              "side is trained unless it is given, too.")  # fmt: skip
@click.option("--under", type=FILE, help="Existing under-forgetting adapter of MODEL.")
@click.option("--after", type=FILE, help="Earlier run whose result is the model; its forget rows "
              "are evaluated again.")  # fmt: skip
@click.option("--control", help="Model that never saw the data, for attacks and to validate twins.")
@click.option("--full", is_flag=True, help="Also export the whole model.")
@click.option("--gguf", is_flag=True, help="Also export a GGUF file, with llama.cpp's converter.")
@click.option("--push", metavar="ID", help="Upload the export to this hub repository.")
@click.option("--yes", is_flag=True, help="Do not ask for approval of generated questions.")
@template_options
@turns_option
@set_option
@json_option
def command(
    model: str,
    forget: tuple[Path, ...],
    retain: tuple[Path, ...],
    holdout: tuple[Path, ...],
    merge: Literal["each", "end"] | None,
    memorise: bool,
    yes: bool,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Make MODEL forget the rows of --forget, and end with a verdict.

    Checks the data, estimates the time, trains an over- and an under-forgetting adapter, searches
    their merges, attacks the best one, exports it and writes a report. With several --forget, each
    set is forgotten in turn, and the earlier ones are tested again.
    """
    from mergeforget.api.sequence import unlearn_sequence
    from mergeforget.api.unlearn import unlearn
    from mergeforget.errors import UsageError

    options |= {"approve": None if yes else _approve, "settings": settings}
    if len(forget) == 1:
        if merge or len(retain) > 1 or len(holdout) > 1:
            raise UsageError(
                "--merge and several --retain or --holdout require several --forget. Leave them "
                "out, or give --forget once per set."
            )
        one = unlearn(model, forget=forget[0], retain=next(iter(retain), None),
                      holdout=next(iter(holdout), None), memorise=memorise, **options)  # fmt: skip
        last, found, text = one, one.to_dict(), str(one)
    else:
        if any(options.pop(side) for side in ("over", "under")):
            raise UsageError("--over and --under belong to one request: give --forget once.")
        every = unlearn_sequence(model, forget=forget, retain=retain or None,
                                 holdout=holdout or None, merge=merge or "each",
                                 memorise=memorise, **options)  # fmt: skip
        last, found, text = every.last, every.to_dict(), str(every)
    lines = [text, "", *(f"Note: {note}" for note in last.notes),
             f"Report: {last.run.paths.report}",
             f"Ask it: mergeforget chat {last.run.root}"]  # fmt: skip
    emit(found, "\n".join(lines), as_json)


def _approve(rows: list[Any]) -> bool:
    """Show the generated questions with the model's answers, and ask for approval.

    Raises:
        UsageError: Nobody can be asked.
    """
    import sys

    from mergeforget.errors import UsageError

    for row in rows:
        click.echo(f"  {row.input}\n    {row.output}", err=True)
    if not sys.stdin.isatty():
        raise UsageError(
            f"The {len(rows)} generated forget rows need approval, and the input is not a "
            "terminal. Check the rows above, and repeat the command with --yes to approve them."
        )
    return click.confirm("Forget these answers?", default=True, err=True)
