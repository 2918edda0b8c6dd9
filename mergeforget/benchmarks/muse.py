"""MUSE: Machine Unlearning Six-Way Evaluation, its four data-side criteria."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.benchmarks import benchmark
from mergeforget.data.schema import Measured, Row
from mergeforget.errors import InputError
from mergeforget.files import read_json, reading
from mergeforget.metrics import METRICS
from mergeforget.metrics.mia_signal_auc import attack_scores
from mergeforget.score import Score

ENDS = ("\n\n", "\nQuestion", "Question:")  # end of an answer to a question
QUESTIONS = ("forget_qa", "retain_qa")
FILES = {  # split -> file of the published folder; members and nonmembers of membership inference
    "forget": "verbmem/forget.json",
    "forget_qa": "knowmem/forget_qa.json",
    "retain_qa": "knowmem/retain_qa.json",
    "members": "privleak/forget.json",
    "nonmembers": "privleak/holdout.json",
}


@benchmark("muse", source="Shi et al. 2024, MUSE, arXiv:2407.06460; its code: swj0419/muse_bench")
def muse(measured: Measured, *, known: Sequence[Score] = ()) -> list[Score]:
    """Verbatim memorisation, knowledge memorisation of both sets, and privacy leakage.

    - verbmem: ROUGE-L F1 of the continuation, split ``forget``.
    - knowmem: ROUGE-L F1 of the answers, splits ``forget_qa`` and ``retain_qa``.
    - privleak: relative AUC of Min-K% (40 %) against ``measured.retrained``; without that model
      it is omitted.

    Sustainability (sequential requests) and scalability (larger forget sets) are runs of the same
    criteria on MUSE's ``sust`` and ``scal`` sets.

    Args:
        known: Scores computed elsewhere, for example MMLU.
    """
    answers = [
        replace(a, completion=first_answer(a.completion)) if a.row.split in QUESTIONS else a
        for a in measured.answers
    ]
    read = replace(measured, answers=answers)
    found = [METRICS.get("rouge_l_f1").fn(read, split) for split in ("forget", *QUESTIONS)]
    found += [METRICS.get(name).fn(read) for name in ("mia_auc", "privleak", "mmlu")]
    return [score for score in found if score is not None] + attack_scores(read) + list(known)


def first_answer(completion: str) -> str:
    """Return the completion up to the next question, as in the published code.

    Example:
        >>> first_answer("In Paris.\\n\\nQuestion: Who?")
        'In Paris.'
    """
    ends = [completion.index(end) for end in ENDS if end in completion]
    return completion[: min(ends)] if ends else completion


def read_folder(folder: Path) -> dict[str, list[Row]]:
    """Read a published corpus: ``verbmem/``, ``knowmem/`` and ``privleak/`` with json files.

    Each question is preceded by the published examples (``*_icl.json``). Missing parts, such as the
    questions of ``books``, are skipped.

    Returns:
        Rows by split: ``forget``, ``forget_qa``, ``retain_qa``, ``members``, ``nonmembers``.

    Raises:
        InputError: The folder contains no file of MUSE, or a file has other keys.
    """
    found: dict[str, list[Row]] = {}
    for split, name in FILES.items():
        path = folder / name
        if path.is_file():
            examples = path.with_name(f"{path.stem}_icl.json")
            shown = read_json(examples) if split in QUESTIONS and examples.is_file() else []
            records = read_json(path)
            if not isinstance(records, list):
                raise InputError(f"{path} is not a list of records but {str(records)[:40]!r}.")
            if not isinstance(shown, list):
                raise InputError(f"{examples} is not a list of records but {str(shown)[:40]!r}.")
            with reading(examples):
                asked = "".join(
                    f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in shown
                )
            found[split] = [
                _row(record, f"{split}-{i}", split, path, asked) for i, record in enumerate(records)
            ]
    if not found:
        raise InputError(
            f"{folder} contains no MUSE corpus. Expected for example {FILES['forget']} with the "
            "keys prompt and gt."
        )
    return found


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
