"""Draws the figures of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mergeforget.analysis.density import Curve, DensityCurves, Prediction
from mergeforget.analysis.dynamics import Moment
from mergeforget.analysis.evidence import Losses
from mergeforget.analysis.style import (
    INK,
    MODEL_STYLES,
    Mark,
    SavedFigure,
    legend,
    panels,
    series,
    styled,
    widen_axis,
)
from mergeforget.run import ANCHORS

TITLES = {
    "mia_auc": "Membership inference",
    "mia_score": "Membership inference score",
    "regurgitation": "Regurgitation",
    "knowledge": "Knowledge",
    "exact_match": "Exact answers",
    "nll": "Loss of the answers",
    "task_aggregate": "Task aggregate",
    "mmlu": "MMLU",
    "aggregate": "Aggregate",
}
UNITS = {
    "mia_auc": "ROC AUC",
    "mia_score": "1 - 2 |AUC - 0.5|",
    "regurgitation": "ROUGE-L recall",
    "knowledge": "share of exact answers",
    "exact_match": "share of exact answers",
    "nll": "NLL (nats per token)",
    "task_aggregate": "harmonic mean",
    "mmlu": "accuracy",
    "aggregate": "mean of the three scores",
}


def title_of(metric: str) -> str:
    """Return the title of a metric's figure."""
    return TITLES.get(metric, metric.replace("_", " ").capitalize())


def draw_density(curves: DensityCurves) -> list[SavedFigure]:
    """Draw one figure per metric, with a panel per split; constant curves are omitted."""
    with styled():
        varied = [
            (metric, [s for s in splits if _varies(curves.of(metric, s))])
            for metric, splits in curves.measures()
        ]
        return [_density(curves, metric, splits) for metric, splits in varied if splits]


def _varies(curves: Sequence[Curve]) -> bool:
    """Return whether some curve has two different values, or is a single point."""
    values = [[p.value for p in curve.points] for curve in curves]
    return any(len(v) == 1 or max(v) - min(v) > 1e-9 for v in values if v)


def _density(all_curves: DensityCurves, metric: str, splits: list[str]) -> SavedFigure:
    figure, axes = panels(len(splits), 3.2 if len(splits) == 1 else 2.4)
    families = list(dict.fromkeys(c.family for c in all_curves.curves))
    marks = []
    for ax, split in zip(axes, splits, strict=True):
        curves = all_curves.of(metric, split)
        for curve in curves:
            marks += _curve(ax, curve, families.index(curve.family), len(families) > 1)
        _references(ax, all_curves, metric, split, [c.part for c in curves])
        _ring(ax, curves, all_curves.chosen)
        if metric == "mia_auc":
            ax.axhline(0.5, color=INK, linewidth=0.8)
        widen_axis(ax)
        ax.set_ylabel(UNITS.get(metric, metric))
        if len(splits) > 1:
            ax.set_title(split)
    axes[-1].set_xlabel("density (fraction of entries kept)")
    axes[-1].set_xlim(0, 1.03)
    legend(figure, axes)
    title = f"{title_of(metric)} against density"
    alt = f"{title}, with 95 % intervals, and the scores of base, over and under."
    return SavedFigure(f"density-{metric.replace('_', '-')}", title, alt, figure, marks)


def _curve(ax: Axes, curve: Curve, i: int, named: bool) -> list[Mark]:
    """Draw a curve: solid with intervals for the report split, hollow for the selection split."""
    x = np.array([p.density for p in curve.points])
    y = np.array([p.value for p in curve.points])
    style = dict(series(i))
    label = " · ".join(([curve.family] if named else []) + [curve.part]).replace(" · all", "")
    if curve.part == "choose":
        style |= {"markerfacecolor": "white", "linewidth": 1.0, "linestyle": (0, (2, 2))}
    else:
        low = [p.value - p.interval[0] if p.interval else 0.0 for p in curve.points]
        high = [p.interval[1] - p.value if p.interval else 0.0 for p in curve.points]
        if any(low) or any(high):
            errors = np.maximum([low, high], 0.0)
            ax.errorbar(
                x, y, yerr=errors, fmt="none", ecolor=style["color"], alpha=0.45, capsize=2.5
            )
    if curve.family.endswith("by layer"):  # mean densities by layer are not a continuous series
        style |= {"linestyle": ""}
    ax.plot(x, y, label=label, **style)
    return [Mark(ax, p.density, p.value, point_text(curve, p)) for p in curve.points]


def point_text(curve: Curve, point: Any) -> str:
    """``ties factors, density 0.7, report: 0.512 (0.41 to 0.61), n 120``."""
    interval = f" ({point.interval[0]:.3f} to {point.interval[1]:.3f})" if point.interval else ""
    part = f", {curve.part}" if curve.part != "all" else ""
    return (
        f"{curve.family}, density {point.density:g}{part}: {point.value:.3f}{interval}, n {point.n}"
    )


def _references(
    ax: Axes, curves: DensityCurves, metric: str, split: str, parts: Sequence[str]
) -> None:
    wanted = [p for p in ("report", "all", "choose") if p in parts or p == "all"]
    for model in ANCHORS:
        if (score := curves.reference(model, metric, split, "", wanted)) is not None:
            style = MODEL_STYLES[model]
            ax.axhline(
                score.value, label=model, color=style["color"], linestyle=style["linestyle"],
                linewidth=1.2,
            )  # fmt: skip


def _ring(ax: Axes, curves: Sequence[Curve], chosen: str) -> None:
    """Draw a ring around the chosen candidate on the report split."""
    shown = [c for c in curves if c.part != "choose"] or list(curves)
    for point in (p for c in shown for p in c.points if p.model == chosen):
        ax.plot(
            point.density, point.value, "o", markersize=13, markerfacecolor="none",
            markeredgecolor=INK, markeredgewidth=1.3, label="chosen",
        )  # fmt: skip


def draw_membership(models: Sequence[Losses]) -> list[SavedFigure]:
    """Draw histograms of the losses of members and non-members, with a panel per model."""
    with styled():
        figure, axes = panels(len(models), 1.6)
        values = np.concatenate([v for x in models for v in (x.members, x.nonmembers)])
        bins = np.linspace(float(values.min()), float(values.max()) + 1e-9, 25).tolist()
        for ax, losses in zip(axes, models, strict=True):
            ax.hist(
                losses.nonmembers, bins, density=True, label="non-members (holdout)",
                color="#56b4e9", alpha=0.55,
            )  # fmt: skip
            ax.hist(
                losses.members, bins, density=True, label="members (forget)", histtype="step",
                color="#a63c00", linewidth=1.7,
            )  # fmt: skip
            ax.set_title(f"{losses.model}: AUC {losses.auc:.3f}")
            ax.set_ylabel("density")
        axes[-1].set_xlabel("NLL of a document (nats per token)")
        legend(figure, axes)
        title = "Losses of members and non-members"
        alt = f"{title}: histograms for {', '.join(x.model for x in models)}."
        return [SavedFigure("mia-histograms", title, alt, figure)]


def draw_curves(moments: Sequence[Moment]) -> list[SavedFigure]:
    """Draw regurgitation and knowledge during training, with a line per task."""
    with styled():
        metrics = [m for m in ("regurgitation", "knowledge") if any(x.metric == m for x in moments)]
        return [_curves(moments, metric) for metric in metrics]


def _curves(moments: Sequence[Moment], metric: str) -> SavedFigure:
    mine = [m for m in moments if m.metric == metric]
    places = list(dict.fromkeys((m.side, m.split) for m in mine))
    tasks = sorted({m.task for m in mine})
    figure, axes = panels(len(places), 1.9)
    marks = []
    for ax, (side, split) in zip(axes, places, strict=True):
        for task in tasks:
            rows = [m for m in mine if (m.side, m.split, m.task) == (side, split, task)]
            x, y = [m.epoch for m in rows], [m.value for m in rows]
            style = series(tasks.index(task)) if task else {"color": INK, "marker": "."}
            ax.plot(x, y, label=task or "all tasks", **style)
            marks += [
                Mark(ax, a, b, f"{side}, {split}, {task or 'all tasks'}, epoch {a:.2g}: {b:.3f}")
                for a, b in zip(x, y, strict=True)
            ]
        ax.set_title(f"{side}: {split}")
        ax.set_ylim(-0.03, 1.03)
        ax.set_ylabel("score")
    axes[-1].set_xlabel("epochs over the forget set")
    legend(figure, axes, columns=4)
    title = f"{title_of(metric)} during training ({UNITS[metric]})"
    return SavedFigure(f"curves-{metric}", title, f"{title}, by task and split.", figure, marks)


def draw_pareto(curves: DensityCurves, chosen: str) -> list[SavedFigure]:
    """Draw forgetting against retention with a point per model, if both splits were scored."""
    with styled():
        return [p for m in ("knowledge", "regurgitation") if (p := _pareto(curves, m, chosen))]


def _pareto(curves: DensityCurves, metric: str, chosen: str) -> SavedFigure | None:
    points = curves.pairs(metric)
    if not points:
        return None
    figure, (ax,) = panels(1, 3.7)
    families = list(dict.fromkeys(p.family for p in points))
    for i, family in enumerate(families):
        mine = [p for p in points if p.family == family]
        x, y = [p.forgotten for p in mine], [p.retained for p in mine]
        if family in MODEL_STYLES:
            style = {k: v for k, v in MODEL_STYLES[family].items() if k != "linestyle"}
            ax.plot(x, y, label=family, linestyle="", markersize=8, **style)
        else:
            ax.plot(x, y, label=family, **series(i) | {"linestyle": "", "alpha": 0.85})
    front = sorted((p.forgotten, p.retained) for p in points if p.front)
    ax.plot(
        [x for x, _ in front], [y for _, y in front], color=INK, linewidth=0.9, label="Pareto front"
    )
    for p in (p for p in points if p.model == chosen):
        ax.plot(
            p.forgotten, p.retained, "o", markersize=14, markerfacecolor="none",
            markeredgecolor=INK, markeredgewidth=1.3, label="chosen",
        )  # fmt: skip
    ax.set_xlabel(f"forgotten: 1 - {UNITS[metric]} on forget")
    ax.set_ylabel(f"retained: {UNITS[metric]}")
    legend(figure, [ax])
    marks = [
        Mark(ax, p.forgotten, p.retained,
             f"{p.model}: forgotten {p.forgotten:.3f}, retained {p.retained:.3f}")
        for p in points
    ]  # fmt: skip
    title = f"Forgetting against retention: {title_of(metric).lower()}"
    alt = f"{title}. Up and to the right is better; the line is the Pareto front."
    return SavedFigure(f"pareto-{metric}", title, alt, figure, marks)


def draw_prediction(prediction: Prediction) -> list[SavedFigure]:
    """Draw the predicted gap and the measured gaps."""
    with styled():
        figure, (ax,) = panels(1, 3.4)
        style = dict(series(0)) | {"marker": ""}
        ax.plot(prediction.grid, prediction.gaps, label="predicted from the pair", **style)
        if prediction.found:
            x, y = zip(*prediction.found, strict=True)
            ax.plot(x, y, "o", color=INK, label="measured")
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.axvline(prediction.density, color=style["color"], linewidth=1.0, linestyle=(0, (2, 2)))
        if prediction.chosen is not None:
            ax.axvline(
                prediction.chosen, color=INK, linewidth=1.0, linestyle=(0, (6, 2)), label="chosen"
            )
        ax.set_xlabel("density (fraction of entries kept)")
        ax.set_ylabel("members - non-members\n(nats per token)")
        ax.set_xlim(0, 1.03)
        legend(figure, [ax])
        marks = [
            Mark(ax, d, g, f"density {d:g}: measured gap {g:.3f}") for d, g in prediction.found
        ]
        title = f"Predicted gap of {prediction.family}"
        alt = f"{title} between members and non-members, against density; 0 is balanced."
        return [SavedFigure("prediction-gap", title, alt, figure, marks)]
