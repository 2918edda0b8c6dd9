"""Reads and scores generations from files, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.benchmarks import BENCHMARKS
from mergeforget.console import say
from mergeforget.data.fields import further_fields
from mergeforget.data.overlap import with_copies
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.data.sources import read_records
from mergeforget.errors import InputError
from mergeforget.files import reading
from mergeforget.metrics._rouge import split_words
from mergeforget.parsing import usable_path
from mergeforget.score import Score

SPLITS = ("forget", "retain")
NAMES = {  # our name -> column names in our files and in those of the task's script
    "output": ("output", "expected_output"),
    "completion": ("completion", "model_output"),
}
MEMBER = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
AUC_KEYS = ("mia_auc", "mia_loss_acc")  # the task's script calls the AUC an accuracy
MMLU_KEYS = ("mmlu", "mmlu_average", "average_acc")


def score_texts(
    generations: Sequence[Path],
    *,
    mia: Path | None = None,
    mmlu: Path | None = None,
    benchmark: str = "semeval2025-task4",
) -> tuple[Measured, list[Score]]:
    """Score existing generations; no model is loaded.

    Args:
        generations: Files or folders of generations, in our format (``answers/MODEL.jsonl``) or in
            that of the task's script (``forget_0.csv``, ``retain_0.csv``).
        mia: Document losses (``answers/MODEL.losses.jsonl``), or a file with the AUC.
        mmlu: File with the MMLU average.

    Raises:
        InputError: A file is missing, or lacks a required column.
    """
    answers = [a for path in generations for file in _files(path) for a in read_generations(file)]
    splits = dict.fromkeys(a.row.split for a in answers)
    if answers and not splits.keys() & set(SPLITS):
        raise InputError(
            f"{', '.join(map(str, generations))}: no row belongs to the split forget or retain. "
            f"The splits are: {', '.join(splits)}."
        )
    losses = read_losses(mia) if mia else []
    known = []
    if mia and not losses:
        known.append(
            Score("mia_auc", "mia", _figure(mia, AUC_KEYS), "nearer", 0, chance=0.5, target=0.5)
        )
    if mmlu:
        known.append(Score("mmlu", "mmlu", _figure(mmlu, MMLU_KEYS), "higher", 0, chance=0.25))
    unit = unit_of(mia) if mia and losses else ""
    measured = Measured(answers, losses, membership=unit or "documents")
    scores = BENCHMARKS.get(benchmark).fn(measured, known=known)
    if benchmark.replace("-", "_") == "semeval2025_task4":
        warn_without_words(answers)
    unread = [split for split in splits if split not in {s.split for s in scores}]
    if unread:
        say(f"{benchmark} does not use the rows of these splits: {', '.join(unread)}.")
    return measured, scores


def warn_without_words(answers: Sequence[Answer]) -> None:
    """Warn if the official tokeniser finds no word in a reference, so that ROUGE-L is always 0."""
    blind = [a.row.id for a in answers if a.row.output.strip() and not split_words(a.row.output)]
    if blind:
        say(
            f"Warning: {len(blind)} of {len(answers)} references have no word for the official "
            f"ROUGE tokeniser, which recognises only a to z and 0 to 9, for example {blind[0]!r}. "
            "Their regurgitation is always 0. Use --benchmark custom, which counts words of any "
            "script."
        )


def read_generations(path: Path) -> list[Answer]:
    """Read the generations of one file.

    The split is the column ``split`` if that is forget, retain or holdout. Otherwise it is inferred
    from the file name, and otherwise it is an additional split with the name in the column. Copies
    of a row have the same subject, so that they do not narrow the intervals.
    """
    answers = []
    for line, record in read_records(path):
        names = {
            ours: next((n for n in theirs if n in record), "") for ours, theirs in NAMES.items()
        }
        missing = [theirs[0] for ours, theirs in NAMES.items() if not names[ours]]
        missing += ["input"] if "input" not in record else []
        if missing:
            raise InputError(
                f"{path}, line {line}: no {' and no '.join(map(repr, missing))}. It has: "
                f"{', '.join(record)}. Generations need input, output (or expected_output) and "
                "completion (or model_output); id is optional."
            )
        row = Row(
            str(record.get("id") or f"{path.stem}-{line}"),
            str(record["input"]),
            str(record[names["output"]]),
            str(record.get("task") or ""),
            _split(record, path, line),
            **further_fields(record),
        )
        others = record.get("others")
        others = tuple(map(str, others)) if isinstance(others, list) else ()
        completion, decoded = record[names["completion"]] or "", record.get("decoded") or ""
        answers.append(Answer(row, str(completion), others, str(decoded)))
    rows = with_copies([answer.row for answer in answers])
    return [replace(answer, row=row) for answer, row in zip(answers, rows, strict=True)]


def read_losses(path: Path) -> list[DocumentLoss]:
    """Read the document losses of one file; an empty list if it contains a score instead.

    Raises:
        InputError: ``member`` is not true or false, or ``nll`` is not a number.
    """
    records = read_records(path)
    if not all({"id", "member", "nll"} <= record.keys() for _, record in records):
        return []
    return [_loss(record, path, line) for line, record in records]


def repeated_rows(folder: Path, model: str) -> set[str]:
    """Return the ids of the forget rows whose answers greedy decoding of a model would repeat."""
    path = folder / f"{model}.likelihoods.jsonl"
    records = [record for _, record in read_records(path)] if path.is_file() else []
    return {
        str(r.get("id")) for r in records if r.get("split") == "forget" and r.get("greedy") == 1
    }


def unit_of(path: Path) -> str:
    """Return the unit of document losses: documents, rows or answers; empty if not recorded.

    Raises:
        InputError: The file mixes several units.
    """
    found = sorted({str(record.get("membership") or "") for _, record in read_records(path)})
    if len(found) > 1:
        raise InputError(f"{path} mixes losses of {' and '.join(map(repr, found))}.")
    return "".join(found)


def _loss(record: dict[str, Any], path: Path, line: int) -> DocumentLoss:
    member = MEMBER.get(str(record["member"]).strip().lower())
    if member is None:
        raise InputError(
            f"{path}, line {line}: member is {record['member']!r}; expected true (or 1) or false "
            "(or 0)."
        )
    try:
        nll = float(record["nll"])
    except (TypeError, ValueError):
        nll = math.nan
    if math.isnan(nll):
        raise InputError(f"{path}, line {line}: nll is {record['nll']!r}, not a number.")
    signals, by_variant = record.get("signals"), record.get("by_variant")
    nlls = {}
    with reading(f"{path}, line {line}"):
        nlls = nlls_by_variant(by_variant if isinstance(by_variant, dict) else {})
    return DocumentLoss(
        str(record["id"]),
        member,
        nll,
        str(record.get("task") or ""),
        dict(signals) if isinstance(signals, dict) else {},
        str(record.get("subject") or ""),
        str(record.get("variant") or ""),
        nlls,
    )


def nlls_by_variant(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the NLL of a document in each prompt variant from plain values.

    Raises:
        TypeError, ValueError: A value is not a number.
    """
    found = {str(variant): float(nll) for variant, nll in values.items()}
    if any(map(math.isnan, found.values())):
        raise ValueError(f"by_variant is {found}")
    return found


def _figure(path: Path, keys: tuple[str, ...]) -> float:
    """Return the value of the first of the keys that the file's only record has, in [0, 1]."""
    records = read_records(path)
    record: dict[str, Any] = records[0][1] if len(records) == 1 else {}
    for key in keys:
        value = record.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not 0 <= value <= 1:
            raise InputError(
                f"{path}: {key} is {value:g}, outside [0, 1]. Use a share, not a percentage."
            )
        return float(value)
    raise InputError(
        f"{path} contains none of {', '.join(keys)} as a number. Pass the result file of the "
        "task's script, or document losses (id, member, nll) for membership inference."
    )


def _files(path: Path) -> list[Path]:
    """Return the file itself, or the files of generations in a folder."""
    if not usable_path(path).is_dir():
        return [path]
    found = [
        p
        for split in SPLITS
        for pattern in (f"{split}*.csv", f"{split}*.jsonl", f"{split}*.parquet")
        for p in sorted(path.glob(pattern))
    ]
    if not found:
        raise InputError(f"{path} contains no forget*.csv or retain*.csv (or .jsonl, .parquet).")
    return found


def _split(record: dict[str, Any], path: Path, line: int) -> str:
    split = str(record.get("split") or "")
    if split in (*SPLITS, "holdout"):
        return split
    for name in SPLITS:
        if path.name.startswith(name):
            return name
    if split:
        return split
    raise InputError(
        f"{path}, line {line}: the split of the row is unknown. Add a column split, or start the "
        "file name with forget or retain."
    )
