"""KnowUnDo: copyrighted content and private data to forget, and related knowledge to retain."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget.benchmarks import benchmark
from mergeforget.data.schema import Measured, Row
from mergeforget.errors import InputError
from mergeforget.files import read_json
from mergeforget.metrics import METRICS
from mergeforget.metrics.mia_signal_auc import attack_scores
from mergeforget.score import Score

FILES = {"forget": "unlearn.json", "retain": "retention.json"}
PARTS = {"train": "", "val": "_val"}  # part of a file -> ending of the split
LARGEST = math.log(sys.float_info.max)  # NLL in nats, beyond which the perplexity overflows


@benchmark(
    "knowundo",
    source="Tian et al. 2024, KnowUnDo, arXiv:2407.01920; its code: zjunlp/KnowUnDo",
    copies=True,
)
def knowundo(measured: Measured, *, known: Sequence[Score] = ()) -> list[Score]:
    """Unlearning and retention success, perplexity, and ROUGE-L of retained answers.

    - ``unlearn_success``: 1 minus the share of answer tokens of the forget set that are the most
      likely one given the true tokens before; ``retention_success``: that share on the retain set.
    - ``perplexity`` of both sets: ``exp`` of the mean over rows of each answer's NLL.

    The published code truncates rows to 256 tokens and counts the empty line before an answer;
    here rows are whole and the empty line belongs to the prompt.

    Args:
        known: Scores computed elsewhere, for example MMLU.
    """
    scores = [_success(measured, split) for split in FILES]
    scores += [_perplexity(measured, split) for split in FILES]
    scores += [METRICS.get("rouge_l_f1").fn(measured, split) for split in FILES]
    scores += [METRICS.get(name).fn(measured) for name in ("mia_auc", "mmlu")]
    return [score for score in scores if score is not None] + attack_scores(measured) + list(known)


def _success(measured: Measured, split: str) -> Score | None:
    share = METRICS.get("exact_memorisation").fn(measured, split)
    if share is None:
        return None
    if split == "retain":
        return replace(share, metric="retention_success", definition="knowundo/retention@1")
    interval = share.interval
    return replace(
        share,
        metric="unlearn_success",
        value=1 - share.value,
        better="higher",
        interval=None if interval is None else (1 - interval[1], 1 - interval[0]),
        definition="knowundo/unlearn@1",
        draws=None if share.draws is None else 1 - share.draws,
    )


def _perplexity(measured: Measured, split: str) -> Score | None:
    nll = METRICS.get("nll").fn(measured, split)
    if nll is None or not nll.definition.startswith("answer"):
        return None
    interval = nll.interval
    return replace(
        nll,
        metric="perplexity",
        value=_exp(nll.value),
        interval=None if interval is None else (_exp(interval[0]), _exp(interval[1])),
        definition="knowundo/perplexity@1",
        draws=None if nll.draws is None else np.exp(np.minimum(nll.draws, LARGEST)),
    )


def _exp(nll: float) -> float:
    """Return the perplexity of an NLL in nats; about the largest float where that overflows."""
    return math.exp(min(nll, LARGEST))


def read_folder(folder: Path) -> dict[str, list[Row]]:
    """Read one domain, ``copyright`` or ``privacy``: ``unlearn.json`` and ``retention.json``.

    Prompt and answer are joined by an empty line, as in the published code.

    Returns:
        Rows by split: ``forget`` and ``retain`` to train on, ``forget_val`` and ``retain_val`` to
        evaluate.

    Raises:
        InputError: The folder contains neither file, or a file has other keys.
    """
    splits: dict[str, list[Row]] = {}
    for split, name in FILES.items():
        path = folder / name
        if not path.is_file():
            continue
        parts = _parts(path)
        for part, ending in PARTS.items():
            for i, record in enumerate(parts[part]):
                row = _row(record, f"{split}{ending}-{i}", split + ending, path)
                splits.setdefault(split + ending, []).append(row)
    if not splits:
        raise InputError(
            f"{folder} contains no KnowUnDo data. Expected unlearn.json and retention.json of one "
            "domain, for example of the folder privacy."
        )
    return splits


def _parts(path: Path) -> dict[str, list[Any]]:
    """Return the parts of a file; the published one is a list of one object, or that object."""
    content = read_json(path)
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    parts = content if isinstance(content, dict) else {}
    wrong = [part for part in PARTS if not isinstance(parts.get(part), list)]
    if wrong:
        raise InputError(f"{path} has no list {' and no list '.join(map(repr, wrong))}.")
    return parts


def _row(record: Any, name: str, split: str, path: Path) -> Row:
    missing = [k for k in ("text", "labels") if not isinstance(record, dict) or k not in record]
    if missing:
        raise InputError(f"{path}: row {name} has no {' and no '.join(map(repr, missing))}.")
    return Row(name, f"{record['text']}\n\n", str(record["labels"]), split=split)
