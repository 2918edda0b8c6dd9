"""`mergeforget data`: make rows about people who do not exist, and check files of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mergeforget.commands._options import emit, json_option, template_options

if TYPE_CHECKING:
    from mergeforget.data.schema import Row
    from mergeforget.data.templating import PromptTemplate

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
    """Read data as every command reads it, and summarise it.

    FILES are data files, folders of .txt files, or data sets of the hub. Rows that stand in two of
    them are an error. With --model one row of each is shown as tokens, with what is trained.
    """
    from mergeforget.data.readers import check_overlap, read_rows
    from mergeforget.distributed import is_main
    from mergeforget.errors import UsageError

    mapping = dict(_pair(column) for column in columns)
    tokenizer = None
    if model:
        from mergeforget.models import load_tokenizer

        tokenizer = load_tokenizer(model)
    elif template or system_prompt:
        raise UsageError("--template and --system-prompt need --model, whose tokenizer is used.")
    sets = {str(path): read_rows(path, columns=mapping, turns=turns) for path in files}
    check_overlap(sets)
    facts, texts = {}, []
    for name, rows in sets.items():
        facts[name] = summary(rows, tokenizer)
        texts.append(_text(Path(name), facts[name]))
        if tokenizer is not None:
            from mergeforget.data.templating import PromptTemplate

            if row > len(rows):
                raise UsageError(f"{name} has {len(rows)} rows, so there is no row {row}.")
            way = PromptTemplate.resolve(tokenizer, template or "auto", system_prompt)
            facts[name]["example"] = example(tokenizer, rows[row - 1], way)
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
    """Show the first rows: what is the prompt, what the answer, and whom they are about."""
    from mergeforget.data.readers import read_rows

    mapping = dict(_pair(column) for column in columns)
    sets = {str(p): read_rows(p, columns=mapping, turns=turns) for p in files}
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


def _row_text(row: Row) -> str:
    about = "" if row.subject == row.id else f"  (subject: {row.subject})"
    lines = [row.id + about]
    lines += [f"  {m.role:<9} {m.content}" for m in row.messages]
    if row.window in ("whole", "start"):
        return "\n".join([*lines, f"  text      {row.document}"])
    first, second = ("context", "text") if row.window else ("prompt", "answer")
    lines += [f"  {first:<9} {row.input}", f"  {second:<9} {row.output}"]
    return "\n".join(lines)


def example(tokenizer: Any, row: Row, way: PromptTemplate) -> dict[str, Any]:
    """One row as tokens, each with the part it belongs to: prompt, answer or end."""
    cut = way.tokens(tokenizer, row)
    parts = {"prompt": cut.prompt, "answer": cut.answer, "end": cut.end}
    names = {"prompt": "answer"} if row.opens else {}
    return {
        "id": row.id,
        "template": way.name,
        "tokens": [
            {"id": i, "text": tokenizer.decode([i]), "part": names.get(part, part)}
            for part, ids in parts.items()
            for i in ids
        ],
    }


def coloured(example: dict[str, Any]) -> str:
    """The tokens of an example by part, borders between tokens marked."""
    from mergeforget.parsing import printable

    colours = {"prompt": "blue", "answer": "green", "end": "red"}
    told = {"prompt": "prompt, not trained", "answer": "answer, trained", "end": "end, trained"}
    lines = [f"  row {printable(example['id'])} as the model sees it ({example['template']}):"]
    for part, colour in colours.items():
        texts = [t["text"].replace("\n", "\\n") for t in example["tokens"] if t["part"] == part]
        if texts:
            shown = "|".join(click.style(printable(text), fg=colour) for text in texts)
            lines.append(f"    {told[part]} ({len(texts)} tokens): {shown}")
    return "\n".join(lines)


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
