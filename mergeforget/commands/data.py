"""`mergeforget data`: make rows about people who do not exist, and check files of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeforget.commands._options import emit, json_option

if TYPE_CHECKING:
    from mergeforget.data.schema import Row

TASKS = ["Task1", "Task2", "Task3"]


@click.group("data")
def command() -> None:
    """Write made-up data, and check data files."""


@command.command("make")
@click.option("--people", type=click.IntRange(min=1), required=True,
              help="Number of documents to forget, per task.")  # fmt: skip
@click.option(
    "--retain",
    type=click.IntRange(min=0),
    help="Number of documents to retain, per task.  [default: as many as --people]",
)
@click.option("--holdout", type=click.IntRange(min=0),
              help="Number of documents that nothing is trained on, per task.  [default: as many "
              "as --people]")  # fmt: skip
@click.option("--tasks", default=",".join(TASKS), show_default=True,
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
    from mergeforget.data.people import make_people
    from mergeforget.errors import InputError
    from mergeforget.files import write_jsonl

    sizes = {
        "forget": people,
        "retain": people if retain is None else retain,
        "holdout": people if holdout is None else holdout,
    }
    names = [task.strip() for task in tasks.split(",")]
    made = {s: r for s, r in make_people(sizes, seed=seed, tasks=names).items() if r}
    for split in made:
        if (out / f"{split}.jsonl").exists() and not force:
            raise InputError(f"{out / f'{split}.jsonl'} is there already. Replace it with --force.")
    for split, rows in made.items():
        write_jsonl(out / f"{split}.jsonl", [row.to_dict() for row in rows])
    facts = {split: summary(rows) for split, rows in made.items()}
    emit({"out": str(out), **facts}, "\n".join(_text(out / f"{s}.jsonl", facts[s]) for s in facts),
         as_json)  # fmt: skip


@command.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS",
              help="Map a column, for example --column input=question. Repeatable.")  # fmt: skip
@click.option("--model", help="Count tokens with this model's tokenizer.")
@json_option
def check(
    files: tuple[Path, ...], columns: tuple[str, ...], model: str | None, as_json: bool
) -> None:
    """Read files as every command does, and print rows, tasks and lengths."""
    from mergeforget.data.readers import read_rows

    mapping = dict(_pair(column) for column in columns)
    tokenizer = None
    if model:
        from mergeforget.models import load_tokenizer

        tokenizer = load_tokenizer(model)
    facts = {}
    for path in files:
        facts[str(path)] = summary(read_rows(path, columns=mapping), tokenizer)
    emit(facts, "\n".join(_text(Path(p), f) for p, f in facts.items()), as_json)


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
    from mergeforget.benchmarks import published_rows
    from mergeforget.files import write_jsonl

    found = published_rows(benchmark, folder)
    files = {}
    for split, rows in found.items():
        files[split] = str(out / f"{split}.jsonl")
        write_jsonl(out / f"{split}.jsonl", [_record(row) for row in rows])
    lines = [f"{len(found[split])} rows in {path}" for split, path in files.items()]
    emit({"files": files}, "\n".join(lines), as_json)


def _record(row: Row) -> dict[str, Any]:
    """A row as evaluate reads it; a whole document has no answer."""
    return row.to_dict() if row.output else {"id": row.id, "document": row.input}


def summary(rows: list[Row], tokenizer: Any = None) -> dict[str, Any]:
    """Counts of rows, documents, tasks and kinds; token lengths where a tokenizer is given."""
    from collections import Counter

    facts: dict[str, Any] = {
        "rows": len(rows),
        "documents": len({r.subject for r in rows}),
        "tasks": dict(sorted(Counter(r.task for r in rows).items())),
        "kinds": dict(sorted(Counter(r.kind for r in rows).items())),
    }
    if tokenizer is not None:
        lengths = sorted(len(ids) for ids in tokenizer([r.document for r in rows]).input_ids)
        facts["tokens"] = {
            "total": sum(lengths),
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
        }
    return facts


def _text(path: Path, facts: dict[str, Any]) -> str:
    parts = [f"{path}: {facts['rows']} rows of {facts['documents']} documents"]
    for what in ("tasks", "kinds", "tokens"):
        if facts.get(what):
            parts.append(", ".join(f"{k or 'no task'} {v}" for k, v in facts[what].items()))
    return "; ".join(parts)


def _pair(column: str) -> tuple[str, str]:
    ours, equals, theirs = column.partition("=")
    if not equals:
        raise click.BadParameter(f"{column!r} is not of the form OURS=THEIRS.")
    return ours, theirs
