"""Training dynamics: loss terms, gradient norms, saturation, drift, collapse, and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.analysis.evidence import (
    MissingError,
    read_history,
    read_snapshots,
    run_scores,
)
from mergeforget.recipe import Recipe, Training, load_recipe
from mergeforget.run import PAIR, Run
from mergeforget.score import Score

Floats = NDArray[np.float64]
PARTS = ("all", "report", "choose")  # in order of preference
SATURATED = 0.05  # share of the total change of a forget term
DRIFT = 0.10  # relative rise of a retain term above its minimum, at least DRIFT_NATS
DRIFT_NATS = 0.05  # nats per token
COLLAPSE_NATS = 1.0  # rise of the retain NLL above its first value, in nats per token


@dataclass(frozen=True)
class Stage:
    """One training as curves over its steps.

    Attributes:
        name: ``memorise``, ``over`` or ``under``.
        step: (n,) optimiser steps, from 1.
        epoch: (n,) passes over the forget set (over all rows when memorising).
        loss: (n,) the weighted sum, in nats.
        terms: label -> (n,) value of the term before its weight.
        weights: label -> (n,) its weight in each step. It is that of the recipe unless ``until`` or
            ``dual`` changes it.
        grad_norm: (n,) before clipping; NaN if it was not recorded.
        learning_rate: (n,)
        window: Number of steps of the running mean in which events are detected.
    """

    name: str
    step: Floats
    epoch: Floats
    loss: Floats
    terms: dict[str, Floats]
    weights: dict[str, Floats]
    grad_norm: Floats
    learning_rate: Floats
    window: int

    def weighted(self, label: str) -> Floats:
        """Return a term multiplied by its weight."""
        return self.weights.get(label, 1.0) * self.terms[label]

    def weight_range(self, label: str) -> str:
        """Describe the weight of a term: ``5``, or ``5 to 20`` if it changed.

        Example:
            >>> from mergeforget.recipe import load_recipe
            >>> stage_of("over", [{"step": 1, "epoch": 1}], load_recipe("zjuklab")).weight_range(
            ...     "npo_forget"
            ... )
            '0.4'
        """
        weights = self.weights.get(label, np.ones(1))
        low, high = float(np.nanmin(weights)), float(np.nanmax(weights))
        return f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"


@dataclass(frozen=True)
class Event:
    """An event in a training.

    Attributes:
        kind: ``saturation``, ``drift``, ``dip`` or ``collapse``.
        epoch: Start of the event.
        text: One sentence with its values.
    """

    stage: str
    kind: str
    term: str
    step: int
    epoch: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def run_dynamics(run: Run) -> list[Stage]:
    """Return the trainings of a run, in the order in which they ran.

    Raises:
        MissingError: Nothing was trained.
    """
    recipe = load_recipe(run.recipe)
    return [stage_of(name, rows, recipe) for name, rows in read_history(run).items()]


def stage_of(name: str, rows: Sequence[dict[str, Any]], recipe: Recipe) -> Stage:
    """Return the curves of one training from the rows of its history."""
    labels = list(dict.fromkeys(label for row in rows for label in row.get("terms") or {}))
    epoch = _column(rows, "epoch")
    return Stage(
        name=name,
        step=_column(rows, "step"),
        epoch=epoch,
        loss=_column(rows, "loss"),
        terms={x: _column([row.get("terms") or {} for row in rows], x) for x in labels},
        weights=_weights(rows, _training(name, recipe)),
        grad_norm=_column(rows, "grad_norm"),
        learning_rate=_column(rows, "learning_rate"),
        window=_half_an_epoch(epoch),
    )


def running_mean(values: Floats, window: int) -> Floats:
    """Return the mean of ``window`` values around each, (n,); fewer at both ends, NaN ignored."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    at = np.arange(len(values))
    start = np.maximum(0, at - (window - 1) // 2)
    end = np.minimum(len(values), at + window // 2 + 1)
    n = counts[end] - counts[start]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 0, (sums[end] - sums[start]) / n, np.nan)


def events_of(stage: Stage) -> list[Event]:
    """Detect when forgetting saturated, and when retention drifted, dipped or collapsed."""
    events = []
    for label in stage.terms if stage.name != "memorise" else []:
        known = _where_measured(stage, label)
        if not len(known.step):
            continue
        smooth = running_mean(known.terms[label], known.window)
        if label.endswith("_forget") and stage.name in PAIR:
            events += _saturation(known, label, smooth)
        if label == "gd_retain":  # not for KL terms, which start at 0 and can only rise
            events += _drift(known, label, smooth)
            events += _collapse(known, label, smooth)
    return events


def _where_measured(stage: Stage, label: str) -> Stage:
    """Return the steps in which a term was measured: some steps may have another set only."""
    at = np.isfinite(stage.terms[label])
    epoch = stage.epoch[at]
    return replace(
        stage,
        step=stage.step[at],
        epoch=epoch,
        terms={label: stage.terms[label][at]},
        window=_half_an_epoch(epoch) if len(epoch) else 1,
    )


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, Stage]]:
    """Return the unlearning curves of several runs as (``RUN: STAGE``, curves).

    Raises:
        MissingError: Nothing was trained in one of them.
    """
    return [
        (f"{run.name}: {stage.name}", stage)
        for run in runs
        for stage in run_dynamics(run)
        if stage.name != "memorise"
    ]


def levels(name: str, stage: Stage) -> str:
    """Describe the first and last value of every term, averaged over half an epoch."""
    levels = []
    for label, values in stage.terms.items():
        smooth = running_mean(values, stage.window)
        levels.append(f"{label} changes from {smooth[0]:.3g} to {smooth[-1]:.3g}")
    return f"In {name}, {'; '.join(levels)}; the largest gradient norm is {_largest(stage):.3g}."


def rows_of(stage: Stage) -> list[dict[str, Any]]:
    """Return one flat row per step, for csv."""
    columns = {"loss": stage.loss, "grad_norm": stage.grad_norm, "rate": stage.learning_rate}
    columns |= {f"{label}": values for label, values in stage.terms.items()}
    columns |= {f"{label}_weighted": stage.weighted(label) for label in stage.terms}
    return [
        {"stage": stage.name, "step": int(stage.step[i]), "epoch": _plain(stage.epoch[i])}
        | {name: _plain(values[i]) for name, values in columns.items()}
        for i in range(len(stage.step))
    ]


def _saturation(stage: Stage, label: str, smooth: Floats) -> list[Event]:
    """Find the step from which the term stays within 5 % of its total change of its last value."""
    first, last = smooth[0], smooth[-1]
    way = abs(last - first)
    if not way > 0:
        return []
    outside = np.flatnonzero(~(np.abs(smooth - last) <= SATURATED * way))
    at = int(outside[-1]) + 1 if len(outside) else 0
    if at >= len(smooth) - 1:
        return []  # it was still changing when the training ended
    text = (
        f"In {stage.name}, forgetting saturates at epoch {stage.epoch[at]:.2g}: from there on, "
        f"{label} completes less than {SATURATED:.0%} of its change from {first:.3g} to {last:.3g}."
    )
    return [_event(stage, "saturation", label, at, text)]


def _drift(stage: Stage, label: str, smooth: Floats) -> list[Event]:
    """Find the step from which a retain term stays 10 % above its minimum until the end."""
    low = int(np.nanargmin(smooth)) if np.isfinite(smooth).any() else 0
    above = smooth > smooth[low] + max(DRIFT * abs(smooth[low]), DRIFT_NATS)
    inside = np.flatnonzero(~above)
    at = int(inside[-1]) + 1 if len(inside) else 0
    if at >= len(smooth):
        return []
    text = (
        f"In {stage.name}, retention drifts from epoch {stage.epoch[at]:.2g} on: {label} ends at "
        f"{smooth[-1]:.3g}, above its minimum of {smooth[low]:.3g}."
    )
    return [_event(stage, "drift", label, at, text)]


def _collapse(stage: Stage, label: str, smooth: Floats) -> list[Event]:
    """Find where the retain NLL rises by more than 1 nat per token, for a time or until the end."""
    above = np.flatnonzero(smooth > smooth[0] + COLLAPSE_NATS)
    if not len(above):
        return []
    at, last = int(above[0]), int(above[-1])
    worst = float(smooth[above].max())
    level = f"{label} reaches {worst:.3g}, {worst - smooth[0]:.3g} nats above its first value"
    when = f"epoch {stage.epoch[at]:.2g}"
    if last == len(smooth) - 1:
        text = f"In {stage.name}, retention collapses from {when} on: {level}."
        return [_event(stage, "collapse", label, at, text)]
    until = f"{stage.epoch[last]:.2g}"
    text = f"In {stage.name}, retention dips from {when} to {until} and recovers: {level}."
    return [_event(stage, "dip", label, at, text)]


def _event(stage: Stage, kind: str, label: str, at: int, text: str) -> Event:
    return Event(stage.name, kind, label, int(stage.step[at]), float(stage.epoch[at]), text)


def _training(name: str, recipe: Recipe) -> Training | None:
    """Return the training of a stage; None for memorising, which has no terms."""
    if name == "memorise":
        return None
    return recipe.training(name) if name in PAIR else recipe.train


def _weights(rows: Sequence[dict[str, Any]], training: Training | None) -> dict[str, Floats]:
    """Return the weight of each term in each step, (n,), from the recipe and the history."""
    if training is None:
        return {}
    factors = []  # of the retain terms; a check of ``until`` changes it from the next step on
    factor = 1.0
    for row in rows:
        factors.append(factor)
        factor = float((row.get("until") or {}).get("retain_factor") or factor)
    of_set = {"retain": np.array(factors)}
    weights = {t.label: t.weight * of_set.get(t.on, np.ones(len(rows))) for t in training.objective}
    if training.dual is not None and any("dual_weight" in row for row in rows):
        weights[training.dual.term] = _column(rows, "dual_weight")
    return weights


def _half_an_epoch(epoch: Floats) -> int:
    """Return the number of steps in half an epoch, used as smoothing window."""
    span = epoch[-1] - epoch[0] if len(epoch) > 1 else 0.0
    steps = (len(epoch) - 1) / span / 2 if span > 0 else 1.0
    return max(1, min(len(epoch), round(steps))) if math.isfinite(steps) else 1


def _column(rows: Sequence[dict[str, Any]], key: str) -> Floats:
    values = [row.get(key) for row in rows]
    return np.array([math.nan if v is None else float(v) for v in values], np.float64)


def _largest(stage: Stage) -> float:
    known = stage.grad_norm[np.isfinite(stage.grad_norm)]
    return float(known.max()) if len(known) else math.nan


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Moment:
    """One score of one snapshot.

    Attributes:
        side: ``over`` or ``under``.
        epoch: Passes over the forget set; 0 is the base.
        task: Task of the rows; empty for all tasks.
    """

    side: str
    epoch: float
    metric: str
    split: str
    task: str
    value: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def run_curves(run: Run) -> list[Moment]:
    """Return the scores of the base (epoch 0), every scored snapshot and the final adapters.

    Raises:
        MissingError: No snapshot was scored.
    """
    try:
        scores = run_scores(run)
    except MissingError:
        scores = {}
    moments = [m for side in PAIR for m in side_curves(run, side, scores)]
    if not moments:
        raise MissingError(
            f"No snapshot of {run.root} was scored. `mergeforget evaluate {run.root} --snapshots` "
            "scores them."
        )
    return moments


def side_curves(run: Run, side: str, scores: Mapping[str, list[Score]]) -> list[Moment]:
    """Return the scores of one adapter's snapshots; empty if none was scored."""
    known = [s for s in read_snapshots(run, side) if s.folder.name in scores]
    if not known:
        return []
    times = [("base", 0.0)] if "base" in scores else []
    times += [(s.folder.name, s.epoch if s.epoch is not None else float(s.step)) for s in known]
    end = _end(run, side)
    if side in scores and end is not None and end > times[-1][1]:
        times.append((side, end))
    return [
        Moment(side, epoch, s.metric, s.split, s.task, s.value, s.n)
        for model, epoch in times
        for s in on_largest_part(scores[model])
    ]


def _end(run: Run, side: str) -> float | None:
    """Return the last epoch of a training."""
    try:
        rows = read_history(run).get(side, [])
    except MissingError:
        return None
    return rows[-1].get("epoch") if rows else None


def on_largest_part(scores: list[Score]) -> list[Score]:
    """Return each score on the largest part of the data for which it is known."""
    largest: dict[tuple[str, str, str], Score] = {}
    for part in reversed(PARTS):
        largest |= {(s.metric, s.split, s.task): s for s in scores if s.part == part}
    return list(largest.values())
