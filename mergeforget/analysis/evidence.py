"""Reads a run folder: scores, candidates, the chosen one, history, snapshots and losses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.candidate import Candidate
from mergeforget.errors import InputError
from mergeforget.files import read_json, read_json_object, read_jsonl, reading
from mergeforget.metrics._statistics import auc, loss_gap
from mergeforget.parsing import plain_name
from mergeforget.run import ANCHORS, Run
from mergeforget.score import Score, read_scores

SNAPSHOT = re.compile(r"^(over|under)-step(\d+)$")
DENSITY = re.compile(
    r"^(?P<method>.+?)-(?P<space>factors|delta)-d(?P<density>[0-9]+(?:\.[0-9]+)?)(?:-|$)"
)


class MissingError(InputError):
    """Files that an analysis needs do not exist yet; the message names the command."""


@dataclass(frozen=True)
class Snapshot:
    """An adapter saved during its training.

    Attributes:
        stage: ``over`` or ``under``.
        step: Number of optimiser steps.
        epoch: Passes over the forget set; None if the history does not contain it.
        folder: PEFT folder.
    """

    stage: str
    step: int
    epoch: float | None
    folder: Path


@dataclass(frozen=True)
class Chosen:
    """The candidate that a search chose.

    Attributes:
        scores: part -> the scores in the sentence.
        predicted: Density predicted from the pair at the start of the search.
        next_best: Sentence that compares it with the next best candidate; empty without one.
    """

    name: str
    candidate: Candidate
    objective: str
    sentence: str
    warning: str | None
    scores: dict[str, Any] = field(default_factory=dict)
    predicted: float | None = None
    next_best: str = ""


def run_scores(run: Run) -> dict[str, list[Score]]:
    """Read the scores of each model of a run.

    Raises:
        MissingError: Nothing has been scored.
    """
    scores = read_scores(run.scores)
    if not scores:
        raise MissingError(
            f"Nothing in {run.root} has been scored yet. Measure the candidates with "
            f"`mergeforget search {run.root}`, or one model with `mergeforget evaluate {run.root}`."
        )
    return scores


def read_candidates(run: Run, models: list[str]) -> dict[str, Candidate]:
    """Return the candidates among the models, by name.

    A candidate without a folder is read from ``explored.jsonl``, or derived from its name.
    """
    candidates = {}
    notes = run.search / "explored.jsonl"
    explored = {str(row["name"]): row for row in read_jsonl(notes) if "name" in row}
    for model in models:
        path = run.candidates / model / "candidate.json"
        if path.is_file():
            candidates[model] = Candidate.from_dict(read_json(path), path)
        elif model in explored:
            candidates[model] = Candidate.from_dict(explored[model], notes)
        elif match := DENSITY.match(model):
            candidates[model] = Candidate(
                match["method"], float(match["density"]), space=_space(match["space"])
            )
    return candidates


def read_chosen(run: Run) -> Chosen | None:
    """Read the chosen candidate; None before a search."""
    path = run.search / "chosen.json"
    if not path.is_file():
        return None
    values = read_json_object(path)
    types = {"warning": str, "scores": dict, "predicted": int | float}
    with reading(path):
        for key, kind in types.items():
            if not isinstance(values.get(key), kind | None):
                raise TypeError(f"{key} is {str(values[key])[:40]!r}")
        if not all(isinstance(part, dict) for part in (values.get("scores") or {}).values()):
            raise TypeError("scores does not map parts to scores")
    return Chosen(
        name=plain_name(values.get("name"), path),
        candidate=Candidate.from_dict(values.get("candidate"), path),
        objective=str(values.get("objective", "")),
        sentence=str(values.get("sentence", "")),
        warning=values.get("warning"),
        scores=values.get("scores") or {},
        predicted=values.get("predicted"),
        next_best=str((values.get("next_best") or {}).get("sentence", "")),
    )


def read_history(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Read ``history.jsonl`` by stage, sorted by step; a repeated step counts once.

    Raises:
        MissingError: Nothing has been trained.
    """
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    for row in read_jsonl(run.history):
        step = _step(row, run.history)
        stages.setdefault(str(row.get("stage")), {})[step] = row | {"step": step}
        with reading(run.history):
            _check_curves(row)
    if not stages:
        raise MissingError(
            f"There is no training history in {run.root}. `mergeforget train-pair` writes it."
        )
    return {stage: [rows[step] for step in sorted(rows)] for stage, rows in stages.items()}


def read_snapshots(run: Run, stage: str) -> list[Snapshot]:
    """Return the snapshots of one adapter, sorted by step."""
    epochs = {
        _step(row, run.history): row.get("epoch")
        for row in read_jsonl(run.history)
        if row.get("stage") == stage and "step" in row
    }
    snapshots = []
    for folder in sorted(run.snapshots.glob(f"{stage}-step*")) if run.snapshots.is_dir() else []:
        if match := SNAPSHOT.match(folder.name):
            step = int(match[2])
            snapshots.append(Snapshot(stage, step, epochs.get(step), folder))
    return sorted(snapshots, key=lambda s: s.step)


def has_adapter(run: Run, side: str) -> bool:
    """Return whether an adapter (``over`` or ``under``) has been trained."""
    return (run.root / side / "adapter_config.json").is_file()


def models_shown(run: Run) -> list[str]:
    """Return the models of the report: base, over, under and the chosen candidate."""
    chosen = read_chosen(run)
    return [*ANCHORS, *([chosen.name] if chosen else [])]


def _step(row: dict[str, Any], where: Path) -> int:
    step = row.get("step", 0)
    if not isinstance(step, int):
        raise InputError(f"{where} has the step {step!r}, which is not an integer.")
    return step


def _check_curves(row: dict[str, Any]) -> None:
    """Raise TypeError for a value of a curve that is not a number."""
    terms, until = (row.get(key) or {} for key in ("terms", "until"))
    for name, values in (("terms", terms), ("until", until)):
        if not isinstance(values, dict):
            raise TypeError(f"{name} is {str(values)[:40]!r}")
    names = ("epoch", "loss", "grad_norm", "learning_rate", "dual_weight")
    curves = {key: row.get(key) for key in names} | {"until": until.get("retain_factor")}
    for key, value in (curves | terms).items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise TypeError(f"{key} is {str(value)[:40]!r}, not a number")


def _space(text: str) -> Any:
    return text


@dataclass(frozen=True)
class Losses:
    """Document losses of one model.

    Attributes:
        model: ``base``, ``over``, ``under`` or a candidate.
        members: (n,) mean NLL of each document of the forget set, in nats per token.
        nonmembers: (m,) the same for documents that are not in the training data.
    """

    model: str
    members: NDArray[np.float64]
    nonmembers: NDArray[np.float64]

    @property
    def auc(self) -> float:
        """Probability that a member has a lower loss than a non-member; ties count one half."""
        return auc(-self.members, -self.nonmembers)

    @property
    def gap(self) -> float:
        """Mean loss of members minus that of non-members, in nats per token."""
        return loss_gap(self.members, self.nonmembers)


def run_membership(run: Run) -> list[Losses]:
    """Read the document losses of base, over, under and the chosen candidate, if measured.

    Raises:
        MissingError: None was measured.
    """
    losses_of_models = [
        losses for model in models_shown(run) if (losses := read_losses(run, model))
    ]
    if not losses_of_models:
        raise MissingError(
            f"No document losses were measured in {run.root}. `mergeforget evaluate {run.root}` "
            "measures them; the run's data must have a holdout set."
        )
    return losses_of_models


def read_losses(run: Run, model: str) -> Losses | None:
    """Read the document losses of one model; None if they were not measured."""
    path = run.answers / f"{model}.losses.jsonl"
    rows = read_jsonl(path)
    with reading(path):
        members = [float(r["nll"]) for r in rows if r["member"]]
        others = [float(r["nll"]) for r in rows if not r["member"]]
    if not members or not others:
        return None
    return Losses(model, np.array(members), np.array(others))


def rows_of(models: list[Losses]) -> list[dict[str, Any]]:
    """Return one flat row per document, for csv."""
    return [
        {"model": losses.model, "member": member, "nll": float(nll)}
        for losses in models
        for member, values in ((True, losses.members), (False, losses.nonmembers))
        for nll in values
    ]
