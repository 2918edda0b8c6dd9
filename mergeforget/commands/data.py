"""`mergeforget data`: make rows about made-up people; check, show and convert files of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mergeforget.commands._options import emit, json_option, template_options

if TYPE_CHECKING:
    from mergeforget.data.schema import Row

TASKS = "Task1,Task2,Task3"


@click.group("data")
def command() -> None:
    """Write made-up data; check, show and convert data files."""


@command.command("make")
@click.option("--people", type=click.IntRange(min=1), required=True,
              help="Number of documents to forget, per task.")  # fmt: skip
@click.option(
    "--retain",
    type=click.IntRange(min=0),
    help="Number of documents to retain, per task.  [default: as many as --people]",
)
@click.option("--holdout", type=click.IntRange(min=0),
              help="Number of documents outside the training data, per task.  [default: as many "
              "as --people]")  # fmt: skip
@click.option("--tasks", default=TASKS, show_default=True,
              help="Task1: stories. Task2: private data. Task3: encyclopedia.")  # fmt: skip
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed: the same seed gives the same people.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Folder for forget.jsonl, retain.jsonl and holdout.jsonl.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace existing files.")
@json_option
def make(
    people: int,
    retain: int | None,
    holdout: int | None,
    tasks: str,
    seed: int,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write made-up people in LUME's format; none of them is real."""
    from mergeforget.api.data import make_data

    names = [task.strip() for task in tasks.split(",")]
    facts = make_data(
        out, people=people, retain=retain, holdout=holdout, tasks=names, seed=seed, force=force
    )
    lines = [_text(out / f"{split}.jsonl", found) for split, found in facts.items()]
    emit({"out": str(out), **facts}, "\n".join(lines), as_json)


_files = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
_columns = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Map a column, for example --column input=question. Repeatable.",
)
_turns = click.option(
    "--turns",
    type=click.Choice(["last", "every"]),
    default="last",
    show_default=True,
    help="Assistant turns of a conversation to read.",
)


@command.command("check")
@_files
@_columns
@_turns
@click.option("--model", help="Count tokens and show a row as this model sees it.")
@click.option("--row", default=1, show_default=True, type=click.IntRange(min=1),
              help="With --model: number of the row to show.")  # fmt: skip
@template_options
@json_option
def check(
    files: tuple[Path, ...],
    columns: tuple[str, ...],
    turns: Literal["last", "every"],
    model: str | None,
    row: int,
    template: Literal["auto", "none", "chat"] | None,
    system_prompt: str | None,
    as_json: bool,
) -> None:
    """Read rows, as every command does, and summarise them.

    FILES are data files, folders of .txt or .md files, or data sets on the Hub. A row that is in
    two of them is an error. With --model, the tokens of one row per file are shown, with the
    trained part.
    """
    from mergeforget.api.data import check_data
    from mergeforget.distributed import is_main

    facts = check_data(
        files, columns=_mapping(columns), turns=turns, model=model, row=row, template=template,
        system_prompt=system_prompt,
    )  # fmt: skip
    texts = [_text(Path(name), found) for name, found in facts.items()]
    emit(facts, "\n".join(texts), as_json)
    for found in facts.values():
        if "example" in found and is_main() and not as_json:
            click.echo(coloured(found["example"]))


@command.command("show")
@_files
@_columns
@_turns
@click.option("--rows", default=3, show_default=True, type=click.IntRange(min=1),
              help="Number of rows to show of each file.")  # fmt: skip
@json_option
def show(
    files: tuple[Path, ...],
    columns: tuple[str, ...],
    turns: Literal["last", "every"],
    rows: int,
    as_json: bool,
) -> None:
    """Show the first rows: prompt, answer and subject."""
    from mergeforget.api.data import read_data

    sets = read_data(files, columns=_mapping(columns), turns=turns)
    shown = {name: [one.to_dict() for one in every[:rows]] for name, every in sets.items()}
    texts = []
    for name, every in sets.items():
        texts.append(f"{name}: {min(rows, len(every))} of {len(every)} rows")
        texts += [_row_text(one) for one in every[:rows]]
    emit(shown, "\n".join(texts), as_json)


@command.command("convert")
@click.argument("benchmark")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Folder for one JSON Lines file per split.")  # fmt: skip
@json_option
def convert(benchmark: str, folder: Path, out: Path, as_json: bool) -> None:
    """Convert the published files of a benchmark to rows.

    FOLDER is the data as the benchmark's authors publish it, for example MUSE's data/news.
    """
    from mergeforget.api.data import convert_data

    files = convert_data(benchmark, folder, out)
    lines = [f"{one['rows']} rows in {one['file']}" for one in files.values()]
    emit({"files": {split: one["file"] for split, one in files.items()}}, "\n".join(lines), as_json)


def _row_text(row: Row) -> str:
    about = "" if row.subject == row.id else f"  (subject: {row.subject})"
    lines = [row.id + about]
    lines += [f"  {m.role:<9} {m.content}" for m in row.messages]
    if row.window in ("whole", "start"):
        return "\n".join([*lines, f"  text      {row.document}"])
    first, second = ("context", "text") if row.window else ("prompt", "answer")
    lines += [f"  {first:<9} {row.input}", f"  {second:<9} {row.output}"]
    return "\n".join(lines)


def coloured(example: dict[str, Any]) -> str:
    """Format the tokens of an example by part, with token boundaries."""
    from mergeforget.parsing import printable

    colours = {"prompt": "blue", "answer": "green", "end": "red"}
    labels = {"prompt": "prompt, not trained", "answer": "answer, trained", "end": "end, trained"}
    lines = [f"  row {printable(example['id'])} as the model sees it ({example['template']}):"]
    for part, colour in colours.items():
        texts = [t["text"].replace("\n", "\\n") for t in example["tokens"] if t["part"] == part]
        if texts:
            shown = "|".join(click.style(printable(text), fg=colour) for text in texts)
            lines.append(f"    {labels[part]} ({len(texts)} tokens): {shown}")
    return "\n".join(lines)


def _text(path: Path, facts: dict[str, Any]) -> str:
    parts = [f"{path}: {facts['rows']} rows of {facts['documents']} documents"]
    for what in ("tasks", "kinds", "tokens"):
        if facts.get(what):
            parts.append(", ".join(f"{k or 'no task'} {v}" for k, v in facts[what].items()))
    return "; ".join(parts)


def _mapping(columns: tuple[str, ...]) -> dict[str, str]:
    """Parse ``OURS=THEIRS`` into a mapping."""
    mapping = {}
    for column in columns:
        ours, equals, theirs = column.partition("=")
        if not equals:
            raise click.BadParameter(f"{column!r} is not of the form OURS=THEIRS.")
        mapping[ours] = theirs
    return mapping
