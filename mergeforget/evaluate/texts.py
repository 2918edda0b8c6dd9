"""What models generated elsewhere: read back from files, to be scored without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergeforget.benchmarks import BENCHMARKS
from mergeforget.console import say
from mergeforget.data.readers import read_records
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.metrics._rouge import split_words
from mergeforget.score import Score

SPLITS = ("forget", "retain")
NAMES = {  # ours: as ours are written, then as the task's script writes them
    "output": ("output", "expected_output"),
    "completion": ("completion", "model_output"),
}
MEMBER = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
AUC_KEYS = ("mia_auc", "mia_loss_acc")  # the script calls its area under the curve an accuracy
MMLU_KEYS = ("mmlu", "mmlu_average", "average_acc")


def score_texts(
    generations: Sequence[Path],
    *,
    mia: Path | None = None,
    mmlu: Path | None = None,
    benchmark: str = "semeval2025-task4",
) -> tuple[Measured, list[Score]]:
    """Score generations that exist already; no model is loaded.

    Args:
        generations: files, or folders of them: ours (``answers/MODEL.jsonl``) or the task's
            script's (``forget_0.csv``, ``retain_0.csv``).
        mia: document losses (``answers/MODEL.losses.jsonl``), or a file with the AUC.
        mmlu: a file with MMLU's average.

    Raises:
        InputError: a file is missing or lacks what is needed.
    """
    answers = [a for path in generations for file in _files(path) for a in read_generations(file)]
    splits = dict.fromkeys(a.row.split for a in answers)
    if answers and not splits.keys() & set(SPLITS):
        raise InputError(
            f"{', '.join(map(str, generations))}: no row is of the split forget or retain; there "
            f"are: {', '.join(splits)}."
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
        say(f"No score of {benchmark} reads the rows of: {', '.join(unread)}.")
    return measured, scores


def warn_without_words(answers: Sequence[Answer]) -> None:
    """Warn where the official tokeniser sees no word in a reference: ROUGE-L is 0 there anyway."""
    blind = [a.row.id for a in answers if a.row.output.strip() and not split_words(a.row.output)]
    if blind:
        say(
            f"Warning: {len(blind)} of {len(answers)} references have no word for the official "
            f"ROUGE tokeniser, which knows a to z and 0 to 9 only, for example {blind[0]!r}. Their "
            "regurgitation is 0 whatever the model writes. Use --benchmark custom, which counts "
            "words of any script."
        )


def read_generations(path: Path) -> list[Answer]:
    """Generations of one file.

    The split is its column where that says forget, retain or holdout, else it is read off the
    file's name, else it is a further split, as the column calls it.
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
                f"{', '.join(record)}. Generations have input, output (or expected_output), "
                "completion (or model_output), and an id where one is known."
            )
        row = Row(
            str(record.get("id") or f"{path.stem}-{line}"),
            str(record["input"]),
            str(record[names["output"]]),
            str(record.get("task") or ""),
            _split(record, path, line),
        )
        answers.append(Answer(row, str(record[names["completion"]] or "")))
    return answers


def read_losses(path: Path) -> list[DocumentLoss]:
    """Document losses of one file; none where it holds figures instead of documents.

    Raises:
        InputError: whether a document is a member is not told, or its loss is not a number.
    """
    records = read_records(path)
    if not all({"id", "member", "nll"} <= record.keys() for _, record in records):
        return []
    return [_loss(record, path, line) for line, record in records]


def unit_of(path: Path) -> str:
    """What document losses are of: documents, rows or answers; empty where they do not say.

    Raises:
        InputError: of several things at once.
    """
    found = sorted({str(record.get("membership") or "") for _, record in read_records(path)})
    if len(found) > 1:
        raise InputError(f"{path} mixes losses of {' and '.join(map(repr, found))}.")
    return "".join(found)


def _loss(record: dict[str, Any], path: Path, line: int) -> DocumentLoss:
    member = MEMBER.get(str(record["member"]).strip().lower())
    if member is None:
        raise InputError(
            f"{path}, line {line}: member is {record['member']!r}, neither true (or 1) nor false "
            "(or 0)."
        )
    try:
        nll = float(record["nll"])
    except (TypeError, ValueError):
        nll = math.nan
    if math.isnan(nll):
        raise InputError(f"{path}, line {line}: nll is {record['nll']!r}, not a number.")
    signals = record.get("signals")
    return DocumentLoss(
        str(record["id"]),
        member,
        nll,
        str(record.get("task") or ""),
        dict(signals) if isinstance(signals, dict) else {},
        str(record.get("subject") or ""),
    )


def _figure(path: Path, keys: tuple[str, ...]) -> float:
    """The first of the keys that the file's one record has, a share in [0, 1]."""
    records = read_records(path)
    record: dict[str, Any] = records[0][1] if len(records) == 1 else {}
    for key in keys:
        value = record.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not 0 <= value <= 1:
            raise InputError(
                f"{path}: {key} is {value:g}, outside [0, 1]. Give it as a share, not in percent."
            )
        return float(value)
    raise InputError(
        f"{path} holds none of {', '.join(keys)} as a number. Give the file in which the task's "
        "script left it, or document losses (id, member, nll) for membership inference."
    )


def _files(path: Path) -> list[Path]:
    """The file itself, or the generations in a folder."""
    if not path.is_dir():
        return [path]
    found = [
        p
        for split in SPLITS
        for pattern in (f"{split}*.csv", f"{split}*.jsonl", f"{split}*.parquet")
        for p in sorted(path.glob(pattern))
    ]
    if not found:
        raise InputError(f"{path} has no forget*.csv or retain*.csv (or .jsonl, .parquet) in it.")
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
        f"{path}, line {line}: forget or retain? Add a column split, or begin the file's name with "
        "forget or retain."
    )
