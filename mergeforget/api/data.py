"""Make, check, read and convert files of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mergeforget.data.schema import Row
    from mergeforget.data.templating import PromptTemplate

TASKS = ("Task1", "Task2", "Task3")


def make_data(
    out: str | Path,
    *,
    people: int,
    retain: int | None = None,
    holdout: int | None = None,
    tasks: Sequence[str] = TASKS,
    seed: int = 0,
    force: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write made-up people in LUME's format; none of them is real.

    Args:
        out: Folder for forget.jsonl, retain.jsonl and holdout.jsonl.
        people: Number of documents to forget, per task.
        retain: Number of documents to retain, per task; as many as ``people`` when omitted.
        holdout: Number of documents outside the training data, per task; as many as ``people``
            when omitted.
        tasks: Tasks to include: Task1 (stories), Task2 (private data), Task3 (encyclopedia).
        seed: Random seed; the same seed gives the same people.
        force: Replace existing files.

    Returns:
        A summary by split, see :func:`check_data`.

    Raises:
        InputError: A file already exists.

    Examples:
        >>> import mergeforget as mf, tempfile
        >>> made = mf.make_data(tempfile.mkdtemp(), people=2, holdout=0, tasks=["Task2"])
        >>> made["forget"]["rows"], made["forget"]["documents"], sorted(made)
        (12, 2, ['forget', 'retain'])
    """
    from mergeforget.data.people import make_people
    from mergeforget.errors import InputError
    from mergeforget.files import write_jsonl

    folder = Path(out)
    sizes = {
        "forget": people,
        "retain": people if retain is None else retain,
        "holdout": people if holdout is None else holdout,
    }
    made = {s: r for s, r in make_people(sizes, seed=seed, tasks=list(tasks)).items() if r}
    for split in made:
        if (folder / f"{split}.jsonl").exists() and not force:
            path = folder / f"{split}.jsonl"
            raise InputError(f"{path} already exists. Replace it with --force.")
    for split, rows in made.items():
        write_jsonl(folder / f"{split}.jsonl", [row.to_dict() for row in rows])
    return {split: summary(rows) for split, rows in made.items()}


def read_data(
    files: Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    turns: Literal["last", "every"] = "last",
) -> dict[str, list[Row]]:
    """Read rows, as every command does.

    Args:
        files: Data files, folders of .txt files, or data sets on the Hub.
        columns: Column names of the files by column name, for example ``{"input": "question"}``.
        turns: Assistant turns of a conversation to read.

    Raises:
        InputError: A file cannot be read, or lacks a column.
    """
    from mergeforget.data.readers import read_rows

    return {
        str(file): read_rows(Path(file), columns=dict(columns or {}), turns=turns) for file in files
    }


def check_data(
    files: Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    turns: Literal["last", "every"] = "last",
    model: str | Path | None = None,
    row: int = 1,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Read rows, as every command does, and summarise them.

    Args:
        files, columns, turns: As in :func:`read_data`.
        model: Count tokens with the tokenizer of this model, and show one row of each file as the
            model sees it.
        row: Number of that row, starting at 1.
        template, system_prompt: How prompts are rendered, see :func:`train_pair`.

    Returns:
        By file: ``rows``, ``documents``, ``tasks`` and ``kinds``; with a model also ``tokens`` and
        ``example``.

    Raises:
        InputError: A file cannot be read, or two of them contain the same row.
        UsageError: A template is given without a model, or there is no such row.
    """
    from mergeforget.data.overlap import check_overlap, distinct_rows
    from mergeforget.data.templating import PromptTemplate
    from mergeforget.errors import UsageError

    tokenizer = None
    if model:
        from mergeforget.models import load_tokenizer

        tokenizer = load_tokenizer(str(model))
    elif template or system_prompt:
        raise UsageError("--template and --system-prompt need --model, whose tokenizer is used.")
    if twice := [str(file) for place, file in enumerate(files) if file in files[:place]]:
        raise UsageError(f"{twice[0]} is given twice. Give each file once.")
    sets = read_data(files, columns=columns, turns=turns)
    check_overlap(sets)
    for name, rows in sets.items():
        distinct_rows(rows, name)  # names the copies
    facts = {name: summary(rows, tokenizer) for name, rows in sets.items()}
    if tokenizer is None:
        return facts
    prompt_template = PromptTemplate.resolve(tokenizer, template or "auto", system_prompt)
    for name, rows in sets.items():
        if row > len(rows):
            raise UsageError(f"{name} has {len(rows)} rows, so there is no row {row}.")
        facts[name]["example"] = example(tokenizer, rows[row - 1], prompt_template)
    return facts


def convert_data(
    benchmark: str, folder: str | Path, out: str | Path
) -> dict[str, dict[str, str | int]]:
    """Convert the published files of a benchmark to rows.

    Args:
        benchmark: Name of a benchmark, for example ``muse``.
        folder: The data as the benchmark's authors publish it, for example MUSE's data/news.
        out: Folder for one JSON Lines file per split.

    Returns:
        By split: the ``file`` and its number of ``rows``.

    Raises:
        InputError: The folder does not contain the files of the benchmark.
    """
    from mergeforget.benchmarks import published_rows
    from mergeforget.files import write_jsonl

    found = published_rows(benchmark, Path(folder))
    files: dict[str, dict[str, str | int]] = {}
    for split, rows in found.items():
        path = Path(out) / f"{split}.jsonl"
        write_jsonl(path, [_record(row) for row in rows])
        files[split] = {"file": str(path), "rows": len(rows)}
    return files


def example(tokenizer: Any, row: Row, prompt_template: PromptTemplate) -> dict[str, Any]:
    """Return the tokens of a row, each with its part: prompt, answer or end."""
    cut = prompt_template.tokens(tokenizer, row)
    parts = {"prompt": cut.prompt, "answer": cut.answer, "end": cut.end}
    names = {"prompt": "answer"} if row.opens else {}
    return {
        "id": row.id,
        "template": prompt_template.name,
        "tokens": [
            {"id": i, "text": tokenizer.decode([i]), "part": names.get(part, part)}
            for part, ids in parts.items()
            for i in ids
        ],
    }


def summary(rows: list[Row], tokenizer: Any = None) -> dict[str, Any]:
    """Return counts of rows, documents, tasks and kinds, and token counts with a tokenizer."""
    from collections import Counter

    from mergeforget.data.chat_template import check_size
    from mergeforget.data.schema import kinds_of

    facts: dict[str, Any] = {
        "rows": len(rows),
        "documents": len({r.subject for r in rows}),
        "tasks": dict(sorted(Counter(r.task for r in rows).items())),
        "kinds": dict(sorted(Counter(kinds_of(rows)).items())),
    }
    if tokenizer is not None:
        for row in rows:
            check_size(row.document, f"Row {row.id!r}")
        lengths = sorted(len(ids) for ids in tokenizer([r.document for r in rows]).input_ids)
        facts["tokens"] = {
            "total": sum(lengths),
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
        }
    return facts


def _record(row: Row) -> dict[str, Any]:
    """Return a row in the form that is evaluated; a whole document has no answer."""
    values = row.to_dict()
    if row.output:
        return values
    kept = {name: values[name] for name in ("task", "subject") if values.get(name)}
    return {"id": row.id, "document": row.input, **kept}
