"""The rows that a model is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergeforget.benchmarks import BENCHMARKS
from mergeforget.data.chat_template import check_size
from mergeforget.data.formats import Turns
from mergeforget.data.overlap import (
    check_overlap,
    distinct_rows,
    plain_text,
    with_copies,
    without_copies,
)
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, Row
from mergeforget.data.sources import read_records
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import Membership, membership_documents
from mergeforget.evaluate.membership import matched, unseen
from mergeforget.recipe import EvaluationSpec
from mergeforget.run import Run


@dataclass(frozen=True)
class EvaluationRows:
    """Rows to evaluate, and documents that were and were not in the training data.

    Attributes:
        further: Rows of splits other than forget and retain, for example ``real_authors``.
    """

    forget: list[Row] = field(default_factory=list)
    retain: list[Row] = field(default_factory=list)
    further: list[Row] = field(default_factory=list)
    members: list[Row] = field(default_factory=list)
    nonmembers: list[Row] = field(default_factory=list)


def rows_of_run(
    run: Run,
    spec: EvaluationSpec,
    *,
    holdout: Path | None = None,
    members: Path | None = None,
    nonmembers: Path | None = None,
    seed: int = 0,
) -> EvaluationRows:
    """Return the rows that the run was trained on, and its holdout, as a search uses them.

    Args:
        holdout, members, nonmembers: As in ``rows_of_files``; the run's own by default.
    """
    if holdout is None and run.has_holdout:
        holdout = run.data / "holdout.jsonl"
    return rows_of_files(
        forget=run.data / "forget.jsonl",
        retain=run.data / "retain.jsonl",
        holdout=holdout,
        spec=spec,
        seed=seed,
        members=members,
        nonmembers=nonmembers,
    )


def rows_of_files(
    *,
    forget: Path | None,
    retain: Path | None,
    holdout: Path | None,
    spec: EvaluationSpec,
    seed: int = 0,
    members: Path | None = None,
    nonmembers: Path | None = None,
    columns: Mapping[str, str] | None = None,
    turns: Turns = "last",
) -> EvaluationRows:
    """Read the rows of data files; files in ``spec.rows`` replace those of the same split.

    Copies of a row are left out, see ``distinct_rows``. A benchmark whose published code counts
    them (``copies=True``) keeps those of the rows that are asked, and of ``members`` and
    ``nonmembers``; see ``with_copies``.

    Args:
        holdout: Rows that are not in the training data. Non-members are drawn from them, with the
            same shares of tasks as the members.
        members: Documents to compare with ``nonmembers`` instead; all of them are used.
        columns: Names of columns in the files, by our names.
        turns: Assistant turns of a conversation that become rows.

    Raises:
        InputError: There are no rows, or a file is missing or malformed.
    """
    files = {"forget": forget, "retain": retain, "holdout": holdout}
    files |= {split: Path(path) for split, path in spec.rows.items()}
    counted = BENCHMARKS.get(spec.benchmark).traits.get("copies", False)
    select = with_copies if counted else distinct_rows
    read = {
        split: (distinct_rows if split == "holdout" else select)(
            read_rows(path, split=split, columns=columns, turns=turns, check_split="part"), path
        )
        if path
        else []
        for split, path in files.items()
    }
    both = {split: read[split] for split in ("forget", "retain")}
    check_overlap(both, {split: files[split] for split in both})
    trained = [*read["forget"], *read["retain"]]
    read["holdout"] = unseen(read["holdout"], trained, files["holdout"])
    unit = spec.membership
    inside, outside = (
        select(read_documents(file, unit), file)
        if file
        else membership_documents(without_copies(rows), unit)
        for file, rows in ((members, read["forget"]), (nonmembers, read["holdout"]))
    )
    if not members and not nonmembers:
        inside, outside = matched(inside, outside, seed)
    if not (any(read.values()) or inside or outside):
        raise InputError(
            "There are no rows to evaluate. Pass --forget, --retain, --holdout or --rows."
        )
    asked = {n: limit_rows(r, spec.limit, seed)[0] for n, r in read.items() if n != "holdout"}
    return EvaluationRows(
        forget=asked.pop("forget"),
        retain=asked.pop("retain"),
        further=[row for rows in asked.values() for row in rows],
        members=inside,
        nonmembers=outside,
    )


def of_forget_set(
    path: Path, answers: Sequence[Answer]
) -> tuple[list[Answer], tuple[int, int] | None]:
    """Return the answers to rows of a forget set, and how many of its rows they cover.

    Texts are compared without regard to case and whitespace, so that a row may have another id. A
    row with the same id and prompt is the same row, too: some benchmarks truncate the answer.

    Args:
        path: File of the rows to forget.
        answers: Answers of a model, which may be to other rows.

    Returns:
        The answers to these rows; the number of rows with an answer, and of all different rows,
        or None if there is no such file.
    """
    if not path.is_file():
        return list(answers), None
    wanted = read_rows(path, split="forget")
    texts, keys = set(map(plain_text, wanted)), {(row.id, row.prompt) for row in wanted}
    inside = [a for a in answers
              if (a.row.id, a.row.prompt) in keys or plain_text(a.row) in texts]  # fmt: skip
    found = {plain_text(a.row) for a in inside}
    found_keys = {(a.row.id, a.row.prompt) for a in inside}
    covered = {plain_text(row) for row in wanted if (row.id, row.prompt) in found_keys} | (
        found & texts
    )
    return inside, (len(covered), len(texts))


def read_documents(path: Path, unit: Membership = "documents") -> list[Row]:
    """Read the documents of a membership set (``document``, optionally ``id``, ...), or rows.

    Raises:
        InputError: Membership is judged by answers, and the documents have none.
    """
    records = read_records(path)
    if all("document" in record for _, record in records):
        if unit == "answers":
            raise InputError(
                f"{path} contains whole documents, which have no answer to judge membership by. "
                "Pass rows with input and output, or use --membership documents."
            )
        found = []
        for line, record in records:
            text = record["document"]
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{path}, line {line}: document is {str(text)[:40]!r}, not text.")
            check_size(text, f"{path}, line {line}")
            uid = str(record.get("id") or f"{path.stem}-{line}")
            task, subject = str(record.get("task") or ""), str(record.get("subject") or "")
            found.append(Row(uid, text, "", task, subject=subject, window="whole"))
        return found
    return read_rows(path)
