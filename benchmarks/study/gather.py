"""Collect the results of a step in a small JSON object: scores, trainings, choice, angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from mergeforget.analysis.evidence import MissingError, read_chosen, read_history
from mergeforget.files import read_json_object, reading
from mergeforget.run import Run
from mergeforget.score import read_scores

METRICS = (
    "mia_auc", "mia_score", "task_aggregate", "aggregate", "mmlu", "regurgitation", "knowledge",
    "exact_match", "nll", "extraction_strength", "model_utility", "forget_quality",
)  # fmt: skip
SPLITS = {"mia_auc": "mia", "mmlu": "mmlu"}  # default split of a metric; all for others
QUIET = ("train-pair", "train", "search", "evaluate", "analyze")  # their output is also in files
PRIVATE = (
    "out",
    "files",
    "run",
    "settings",
    "examples",
)  # keys with paths of this machine or rows of data
DIGITS = 6  # decimals kept: equal on every machine


def gather(folder: Path, printed: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the results in a step's folder.

    Args:
        printed: The commands in order, each with the JSON object that it printed.

    Returns:
        ``scores``: model -> part -> ``metric/split/task`` -> [value, n, low, high];
        ``history``: values of each training by stage; ``chosen``; ``angles``; ``prediction``;
        ``printed``: output of commands that write no files. Keys without results are absent.
    """
    run = Run(folder)
    found = {
        "scores": scores_of(run),
        "history": histories(run),
        "chosen": chosen(run),
        "angles": angles(run),
        "prediction": prediction(run),
        "printed": [value for command, value in printed if command.split()[0] not in QUIET],
    }
    rounded: dict[str, Any] = plain({name: value for name, value in found.items() if value})
    return rounded


def key_of(metric: str, split: str, task: str = "") -> str:
    """``knowledge/retain/Task1``."""
    return "/".join(part for part in (metric, split, task) if part)


def full_key(score: str) -> str:
    """Add the default split to a key: ``mia_auc`` becomes ``mia_auc/mia``."""
    return score if "/" in score else key_of(score, SPLITS.get(score, "all"))


def scores_of(run: Run) -> dict[str, Any]:
    """Return every score of the metrics that a study reads; a later measurement replaces an earlier
    one.
    """
    found: dict[str, Any] = {}
    for model, scores in read_scores(run.scores).items():
        for score in (s for s in scores if s.metric in METRICS):
            part = found.setdefault(model, {}).setdefault(score.part, {})
            low_high = list(score.interval or ())
            part[key_of(score.metric, score.split, score.task)] = [score.value, score.n, *low_high]
    return found


def histories(run: Run) -> dict[str, Any]:
    """Return measures of the stability of each training."""
    try:
        return {stage: steadiness(rows) for stage, rows in read_history(run).items()}
    except MissingError:
        return {}


def steadiness(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return number of steps, losses and gradient norms of one training.

    ``loss_deviation`` is the standard deviation over the steps, ``grad_norm_spread`` the same as a
    multiple of the mean.
    """
    losses = [float(row["loss"]) for row in rows]
    norms = [float(row["grad_norm"]) for row in rows if row.get("grad_norm") is not None]
    found = {
        "steps": len(rows),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "loss_deviation": pstdev(losses),
    }
    if norms:
        mean = fmean(norms)
        found |= {"grad_norm_mean": mean, "grad_norm_max": max(norms)}
        found |= {"grad_norm_spread": pstdev(norms) / mean} if mean else {}
    return found


def chosen(run: Run) -> dict[str, Any]:
    """Return the choice of the search with its sentence."""
    choice = read_chosen(run)
    if choice is None:
        return {}
    return {
        "name": choice.name,
        "density": choice.candidate.density,
        "objective": choice.objective,
        "sentence": choice.sentence,
        "warning": choice.warning,
    }


def angles(run: Run) -> dict[str, Any]:
    """Return the angles between weight changes during the training of each adapter, one per
    snapshot, and between the two adapters, by space.
    """
    path = run.analysis / "angles.json"
    with reading(path):
        rows = read_json_object(path)["rows"] if path.exists() else []
        rows = [{"model": r.get("subject"), **r} for r in rows]  # key in files of earlier versions
        whole = [r for r in rows if r["group"] == "all" and r["degrees"] is not None]
    found: dict[str, Any] = {}
    for name, vectors in (
        ("forward", "0 to s, s to end"),
        ("overall", "0 to s, 0 to end"),
        ("correction", "s to end, 0 to end"),
    ):
        for row in whole:
            if row["vectors"] == vectors and row["space"] == "delta":
                found.setdefault(row["model"], {}).setdefault(name, []).append(row["degrees"])
    for one in found.values():
        one |= {f"{name}_min": min(values) for name, values in list(one.items())}
        one |= {f"{n}_max": max(v) for n, v in list(one.items()) if isinstance(v, list)}
        one |= {f"{n}_first": v[0] for n, v in list(one.items()) if isinstance(v, list)}
    for row in whole:
        if row["model"] == "pair" and row["step"] is None:
            found.setdefault("pair", {})[row["space"]] = row["degrees"]
    return found


def prediction(run: Run) -> dict[str, Any]:
    """Return the density predicted from the pair, if the step computed it."""
    from mergeforget.analysis.density import run_prediction

    if not (run.analysis / "prediction.json").exists():
        return {}
    found = run_prediction(run)
    return {"density": found.density, "found": found.chosen, "sentence": found.sentence}


def plain(value: Any) -> Any:
    """Return values rounded and valid in JSON, without folders and rows of data."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if k not in PRIVATE}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value
