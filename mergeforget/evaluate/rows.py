"""The rows that a model is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeforget.data.readers import check_overlap, read_records, read_rows
from mergeforget.data.schema import Row
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import Membership, membership_documents
from mergeforget.evaluate.membership import matched, unseen
from mergeforget.recipe import EvaluationSpec
from mergeforget.run import Run


@dataclass(frozen=True)
class EvaluationRows:
    """Rows to be answered, and documents that were and were not trained on.

    Attributes:
        further: rows of splits other than forget and retain, for example ``real_authors``.
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
    """The rows that the run was trained on, and its holdout; the sets a search measures with.

    Args:
        holdout, members, nonmembers: as of ``rows_of_files``; the run's own where none is given.
    """
    own = run.data / "holdout.jsonl"
    if holdout is None and own.exists() and own.stat().st_size:
        holdout = own
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
) -> EvaluationRows:
    """Rows of data files; those that ``spec.rows`` names take the place of the same split's.

    Args:
        holdout: rows that no training saw: the non-members, drawn in the members' shares of tasks.
        members: documents to compare with ``nonmembers`` instead, all of them.
        columns: our names of columns to the files'.

    Raises:
        InputError: nothing to evaluate on, or a file is missing or malformed.
    """
    files = {"forget": forget, "retain": retain, "holdout": holdout}
    files |= {split: Path(path) for split, path in spec.rows.items()}
    read = {
        split: read_rows(path, split=split, columns=columns) if path else []
        for split, path in files.items()
    }
    both = {split: read[split] for split in ("forget", "retain")}
    check_overlap(both, {split: files[split] for split in both})
    trained = [*read["forget"], *read["retain"]]
    read["holdout"] = unseen(read["holdout"], trained, files["holdout"])
    unit = spec.membership
    inside, outside = (
        read_documents(file, unit) if file else membership_documents(rows, unit)
        for file, rows in ((members, read["forget"]), (nonmembers, read["holdout"]))
    )
    if not members and not nonmembers:
        inside, outside = matched(inside, outside, seed)
    if not (read["forget"] or read["retain"] or inside or outside):
        raise InputError("There is nothing to evaluate on. Give --forget, --retain or --holdout.")
    asked = {n: limit_rows(r, spec.limit, seed)[0] for n, r in read.items() if n != "holdout"}
    return EvaluationRows(
        forget=asked.pop("forget"),
        retain=asked.pop("retain"),
        further=[row for rows in asked.values() for row in rows],
        members=inside,
        nonmembers=outside,
    )


def read_documents(path: Path, unit: Membership = "documents") -> list[Row]:
    """Documents of a membership set (``id`` and ``document``), or of rows.

    Raises:
        InputError: membership is judged by answers, and the documents have none.
    """
    records = read_records(path)
    if all("document" in record for _, record in records):
        if unit == "answers":
            raise InputError(
                f"{path} holds whole documents, which have no answer to judge membership by. Give "
                "rows with input and output, or --membership documents."
            )
        return [
            Row(
                str(record.get("id") or f"{path.stem}-{line}"),
                str(record["document"]),
                "",
                window="whole",
            )
            for line, record in records
        ]
    return read_rows(path)
