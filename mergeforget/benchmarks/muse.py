"""MUSE: Machine Unlearning Six-Way Evaluation, its four data-side criteria."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.benchmarks import benchmark
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Measured, Row
from mergeforget.data.sources import read_records
from mergeforget.errors import InputError
from mergeforget.files import read_json, reading
from mergeforget.metrics import METRICS
from mergeforget.metrics.mia_signal_auc import attack_scores
from mergeforget.score import Score

ENDS = ("\n\n", "\nQuestion", "Question:")  # end of an answer to a question
QUESTIONS = ("forget_qa", "retain_qa")
FILES = {  # split -> file of the published folder; members and nonmembers of membership inference
    "forget": "verbmem/forget",
    "forget_qa": "knowmem/forget_qa",
    "retain_qa": "knowmem/retain_qa",
    "members": "privleak/forget",
    "nonmembers": "privleak/holdout",
}
CORPORA = {  # split -> file of texts to train on
    "train_forget": "raw/forget",
    "train_retain": "raw/retain1",
    **{f"scal_{i}": f"scal/forget_{i}" for i in range(1, 5)},  # larger and larger forget sets
    **{f"sust_{i}": f"sust/forget_{i}" for i in range(1, 5)},  # requests in sequence
}
ENDINGS = (".json", ".jsonl", "-*.parquet", ".txt")  # in the repository and on the Hub


@benchmark(
    "muse",
    source="Shi et al. 2024, MUSE, arXiv:2407.06460; its code: swj0419/muse_bench",
    truncated=("forget",),
    as_written=("forget", *QUESTIONS),
    copies=True,
)
def muse(measured: Measured, *, known: Sequence[Score] = ()) -> list[Score]:
    """Verbatim memorisation, knowledge memorisation of both sets, and privacy leakage.

    - verbmem: ROUGE-L F1 of the continuation, split ``forget``. As in the published code, an
      evaluation truncates the reference to the number of tokens that are generated.
    - knowmem: ROUGE-L F1 of the answers, splits ``forget_qa`` and ``retain_qa``.
    - privleak: relative AUC of Min-K% (40 %) against ``measured.retrained``; without that model
      it is omitted.

    Scalability and sustainability apply the same criteria after unlearning larger forget sets
    (``scal``) or one set after the other (``sust``); see docs/benchmarks.md.

    Args:
        known: Scores computed elsewhere, for example MMLU.
    """
    answers = [
        replace(a, completion=first_answer(a.completion)) if a.row.split in QUESTIONS else a
        for a in measured.answers
    ]
    read = replace(measured, answers=answers)
    scores = [METRICS.get("rouge_l_f1").fn(read, split) for split in ("forget", *QUESTIONS)]
    scores += [METRICS.get(name).fn(read) for name in ("mia_auc", "privleak", "mmlu")]
    return [score for score in scores if score is not None] + attack_scores(read) + list(known)


def first_answer(completion: str) -> str:
    """Return the completion up to the next question, as in the published code.

    Example:
        >>> first_answer("In Paris.\\n\\nQuestion: Who?")
        'In Paris.'
    """
    ends = [completion.index(end) for end in ENDS if end in completion]
    return completion[: min(ends)] if ends else completion


def read_folder(folder: Path) -> dict[str, list[Row]]:
    """Read a published corpus: ``verbmem/``, ``knowmem/``, ``privleak/``, ``raw/``, ``scal/``, ...

    Files are json, jsonl or the parquet files on the Hub. A corpus is a list of texts, or one text
    (``.txt``) if there is no list. Each question is preceded by the published examples
    (``*_icl``). Missing parts, such as the questions of ``books``, are skipped.

    Returns:
        Rows by split: ``forget``, ``forget_qa``, ``retain_qa``, ``members``, ``nonmembers``, and
        windows of the texts to train on: ``train_forget``, ``train_retain``, ``scal_1`` to
        ``scal_4``, ``sust_1`` to ``sust_4``.

    Raises:
        InputError: The folder contains no file of MUSE, or a file has other keys.
    """
    splits: dict[str, list[Row]] = {}
    for split, name in FILES.items():
        path = _file(folder, name)
        if path is None:
            continue
        asked = ""
        examples = _file(folder, f"{name}_icl") if split in QUESTIONS else None
        if examples is not None:
            shown = _records(examples)
            with reading(examples):
                asked = "".join(
                    f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in shown
                )
        splits[split] = [
            _row(record, f"{split}-{i}", split, path, asked)
            for i, record in enumerate(_records(path))
        ]
    for split, name in CORPORA.items():
        path = _file(folder, name)
        if path is not None:
            splits[split] = read_rows(path, split=split)
    if not splits:
        raise InputError(
            f"{folder} contains no MUSE corpus. Expected for example {FILES['forget']}.json with "
            "the keys prompt and gt."
        )
    return splits


def _file(folder: Path, name: str) -> Path | None:
    """Return the file of a part, or None if it is missing; only corpora may be plain text."""
    place, endings = folder / name, ENDINGS if name in CORPORA.values() else ENDINGS[:-1]
    return next((p for e in endings for p in sorted(place.parent.glob(place.name + e))), None)


def _records(path: Path) -> list[Any]:
    if path.suffix != ".json":
        return [record for _, record in read_records(path)]
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path} is not a list of records but {str(records)[:40]!r}.")
    return records


def _row(record: Any, name: str, split: str, path: Path, examples: str) -> Row:
    keys = {"forget": ("prompt", "gt"), "members": ("text",), "nonmembers": ("text",)}.get(
        split, ("question", "answer")
    )
    if isinstance(record, str) and keys == ("text",):
        record = {"text": record}
    missing = [key for key in keys if not isinstance(record, dict) or key not in record]
    if missing:
        raise InputError(f"{path}: row {name} has no {' and no '.join(map(repr, missing))}.")
    if keys == ("text",):
        return Row(name, str(record["text"]), "", split=split)
    if split in QUESTIONS:
        return Row(
            name, f"{examples}Question: {record['question']}\nAnswer: ", str(record["answer"]),
            split=split,
        )  # fmt: skip
    return Row(name, str(record["prompt"]), str(record["gt"]), split=split)
