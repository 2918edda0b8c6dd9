"""Run folders with the scores, answers and attacks of models, written without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mergeforget.attack.result import Result, write_result
from mergeforget.benchmarks import score
from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.run_models import write_model_scores
from mergeforget.evaluate.verdict import NEEDED
from mergeforget.files import write_jsonl
from mergeforget.run import Run
from mergeforget.score import read_scores, write_scores

MODEL = "ties-factors-d0.50"


def store(run: Run, rows: Sequence[Row], said: Sequence[str], name: str = MODEL) -> None:
    """Write the scores and answers of a model as `mergeforget evaluate` does."""
    answers = [Answer(row, text) for row, text in zip(rows, said, strict=True)]
    measured = Measured(answers, [])
    write_model_scores(run.scores, run.answers, name, measured, score("custom", measured))


def with_data(run: Run, rows: Sequence[Row]) -> Run:
    """Write the forget rows of a run."""
    write_jsonl(run.data / "forget.jsonl", [row.to_dict() for row in rows])
    return run


def people() -> list[Row]:
    return [Row(f"f{i}", f"Where does P{i} live?", f"House number {7000 + 37 * i}", split="forget")
            for i in range(12)]  # fmt: skip


def said(rows: Sequence[Row], right: int) -> list[str]:
    return [row.output if i < right else "I do not know." for i, row in enumerate(rows)]


def cleared(run: Run) -> None:
    """Write results of the required attacks that clear the model."""
    for name in NEEDED:
        write_result(run.attacks, Result(name, MODEL, "none found", "Nothing.", []))


def keep_as_parts(run: Run, name: str = MODEL) -> None:
    """Store the scores of a model as those of a search: on all rows and on both splits."""
    scores = read_scores(run.scores)
    scores[name] += [replace(s, part=part) for s in scores[name] for part in ("choose", "report")]
    write_scores(run.scores, scores)


def searched(folder: Path, right: int) -> tuple[Run, list[Row]]:
    """A run whose chosen model was measured on 12 forget rows; the base knew all of them."""
    rows = people()
    run = with_data(Run(folder), rows)
    store(run, rows, said(rows, right))
    store(run, rows, said(rows, 12), "base")
    keep_as_parts(run)
    cleared(run)
    return run, rows
