"""Tasks of lm-eval on a loaded model; needs the extra ``eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mergeforget.errors import InputError, ResourceError, UsageError, reason_of, suggest
from mergeforget.files import sha256
from mergeforget.score import Score

INSTALL = "pip install 'mergeforget[eval]'"


def task_key(task: str, folder: Path | None, limit: int | None) -> str:
    """Return the cache key of a task; a folder is identified by its content."""
    content = sha256(folder) if folder else ""
    return json.dumps({"lm_eval": task, "folder": content, "limit": limit})


def run_task(
    model: Any,
    tokenizer: Any,
    task: str,
    *,
    folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[Score]:
    """Run one task, or every task of a group, and return its scores.

    The metric of a score is ``lm_eval_`` followed by lm-eval's name, for example ``lm_eval_acc``.
    The interval is the value plus and minus 1.96 of lm-eval's standard errors.

    Args:
        folder: Folder with YAML files of additional tasks; with local data they need no network.
        limit: Maximum number of examples per task.

    Raises:
        UsageError: lm-eval is not installed, or there is no such task.
        InputError: The data of the task cannot be loaded.
    """
    evaluator, wrapped, managers = _imported()
    manager = managers(include_path=folder, include_defaults=False) if folder else None
    if manager is None or task not in manager.all_tasks:  # indexing all tasks takes a minute
        manager = managers(include_path=folder)
    if task not in manager.all_tasks:
        raise UsageError(
            f"lm-eval has no task {task!r}.{suggest(task, manager.all_tasks)} Give the folder of "
            "your own tasks with --lm-eval-folder."
        )
    try:
        results = evaluator.simple_evaluate(
            model=wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=[task],
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=0,
        )
    except (OSError, ValueError, RuntimeError) as error:
        if "out of memory" in str(error).lower():
            raise ResourceError(f"Out of memory in lm-eval's task {task!r}.") from error
        raise InputError(
            f"lm-eval could not run the task {task!r}: {reason_of(error)} Data that "
            " is not on this machine is downloaded from the hub; check the connection."
        ) from error
    return [score for name in results["results"] for score in _scores(name, results)]


def _imported() -> tuple[Any, Any, Any]:
    """Import lm-eval's evaluator, its wrapper for loaded models, and its task manager."""
    try:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            f"lm-eval's tasks need the package lm-eval ({error}). Install it: {INSTALL}"
        ) from error
    return evaluator, HFLM, TaskManager


def _scores(task: str, results: dict[str, Any]) -> list[Score]:
    """Return the scores of one task; aliases and standard errors are not scores."""
    values = results["results"][task]
    better = results.get("higher_is_better", {}).get(task, {})
    n = results.get("n-samples", {}).get(task, {}).get("effective", 0)
    version = results.get("versions", {}).get(task, "?")
    scores = []
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, int | float) or not filtered:
            continue
        scores.append(
            Score(
                f"lm_eval_{metric}" + ("" if filtered == "none" else f"_{filtered}"),
                "lm_eval",
                float(value),
                "higher" if better.get(metric, True) else "lower",
                int(n),
                task=task,
                interval=_interval(value, values.get(f"{metric}_stderr,{filtered}")),
                definition=f"lm-eval/{task}/{metric}@{version}",
            )
        )
    return scores


def _interval(value: float, error: Any) -> tuple[float, float] | None:
    if not isinstance(error, int | float):
        return None
    return value - 1.96 * error, value + 1.96 * error
