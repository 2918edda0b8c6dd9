"""Draws the figures of the training: angles, dynamics and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mergeforget.analysis.angles import CORRECTION, FORWARD, OVER_UNDER, OVERALL, Angle
from mergeforget.analysis.dynamics import Event, Stage, running_mean
from mergeforget.analysis.style import (
    FAINT,
    INK,
    MODEL_STYLES,
    QUIET,
    Mark,
    SavedFigure,
    legend,
    panels,
    series,
    styled,
)
from mergeforget.analysis.weights import Agreement, ModuleFacts

SPACES = {"delta": "change B A", "a": "factor A", "b": "factor B"}


def draw_angles(angles: Sequence[Angle]) -> list[SavedFigure]:
    """Draw the angles during the training of each adapter, and between the two."""
    with styled():
        sides = sorted({a.model for a in angles if a.model != "pair"})
        drawn = [_angles_over_training(side, angles) for side in sides]
        if any(a.model == "pair" and a.step is not None for a in angles):
            drawn.append(_angles_of_pair(angles))
        if any(a.model == "pair" and a.step is None for a in angles):
            drawn.append(_angles_by_layer(angles))
            drawn.append(_angles_by_kind(angles))
        return drawn


def _angles_over_training(side: str, angles: Sequence[Angle]) -> SavedFigure:
    """Draw a panel for the change of the weights, and one for each factor."""
    mine = [a for a in angles if (a.model, a.group) == (side, "all")]
    spaces = [space for space in SPACES if any(a.space == space for a in mine)]
    figure, axes = panels(len(spaces), 3.5 if len(spaces) == 1 else 2.4)
    marks = []
    for ax, space in zip(axes, spaces, strict=True):
        marks += _angles_in(ax, [a for a in mine if a.space == space])
        ax.set_title(SPACES[space])
    in_epochs = all(a.epoch is not None for a in mine)
    axes[-1].set_xlabel("s (epochs)" if in_epochs else "s (steps)")
    legend(figure, axes)
    title = f"Angles between changes of {side} during training"
    alt = (
        f"{title}: from 0 to step s, from s to the end, and from 0 to the end, in degrees, for the "
        "change of the weights and for each LoRA factor."
    )
    return SavedFigure(f"angles-{side}", title, alt, figure, marks)


def _angles_in(ax: Axes, angles: Sequence[Angle]) -> list[Mark]:
    marks = []
    for i, vectors in enumerate((FORWARD, OVERALL, CORRECTION)):
        rows = [a for a in angles if a.vectors == vectors and a.degrees is not None]
        x, y = [_time(a) for a in rows], [a.degrees for a in rows if a.degrees is not None]
        ax.plot(x, y, label=vectors.replace(", ", "  ∠  "), **series(i))
        marks += [
            Mark(ax, at, d, f"step {a.step}: {vectors}: {d:.1f}°")
            for a, at, d in zip(rows, x, y, strict=True)
        ]
    _degrees(ax)
    return marks


def _angles_of_pair(angles: Sequence[Angle]) -> SavedFigure:
    figure, (ax,) = panels(1, 3.2)
    marks = []
    for i, (space, label) in enumerate(SPACES.items()):
        rows = [
            a
            for a in angles
            if (a.model, a.group, a.space) == ("pair", "all", space)
            and a.step is not None
            and a.degrees is not None
        ]
        x, y = [_time(a) for a in rows], [a.degrees for a in rows if a.degrees is not None]
        if rows:
            ax.plot(x, y, label=label, **series(i))
        marks += [
            Mark(ax, at, d, f"epoch {at:.2g}, {label}: {d:.1f}°")
            for at, d in zip(x, y, strict=True)
        ]
    ax.set_xlabel("epochs over the forget set")
    _degrees(ax)
    legend(figure, [ax])
    title = "Angle between over and under during training"
    alt = f"{title}, in degrees, for the change of the weights and for each LoRA factor."
    return SavedFigure("angles-pair", title, alt, figure, marks)


def _angles_by_layer(angles: Sequence[Angle]) -> SavedFigure:
    figure, (ax,) = panels(1, 3.2)
    marks = []
    for i, (space, label) in enumerate(SPACES.items()):
        rows = _pair(angles, "layer", space)
        x = [int(a.name) for a in rows]
        y = [a.degrees for a in rows if a.degrees is not None]
        if rows:
            ax.plot(x, y, label=label, **series(i))
        marks += [
            Mark(ax, at, d, f"layer {at}, {label}: {d:.1f}°") for at, d in zip(x, y, strict=True)
        ]
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _degrees(ax)
    legend(figure, [ax])
    title = "Angle between over and under, by layer"
    alt = f"{title}, in degrees, for the change of the weights and for each LoRA factor."
    return SavedFigure("angles-layers", title, alt, figure, marks)


def _angles_by_kind(angles: Sequence[Angle]) -> SavedFigure:
    rows = _pair(angles, "kind", "delta")
    modules = _pair(angles, "module", "delta")
    figure, (ax,) = panels(1, 1.1 + 0.3 * len(rows))
    marks = []
    for i, row in enumerate(rows):
        mine = [
            a.degrees for a in modules if a.name.endswith("." + row.name) and a.degrees is not None
        ]
        ax.plot(mine, [i] * len(mine), "|", color=QUIET, markersize=9, alpha=0.6)
        if row.degrees is not None:
            ax.plot(row.degrees, i, "o", color="#009e73", markersize=7)
            marks.append(Mark(ax, row.degrees, i, f"{row.name}: {row.degrees:.1f}°"))
    ax.set_yticks(range(len(rows)), [a.name for a in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.axvline(90, color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
    ax.set_xlabel("angle (degrees); bars: single modules, dot: all of a kind")
    title = "Angle between over and under, by kind of module"
    return SavedFigure("angles-kinds", title, f"{title}, in degrees.", figure, marks)


def draw_dynamics(stages: Sequence[Stage], events: Sequence[Event]) -> list[SavedFigure]:
    """Draw loss terms and gradient norms of the pair, and the loss of memorising."""
    with styled():
        pair = [s for s in stages if s.name != "memorise"]
        drawn = [_terms(pair, events), _losses(pair)] if pair else []
        return drawn + [_memorising(s) for s in stages if s.name == "memorise"]


def _terms(stages: Sequence[Stage], events: Sequence[Event]) -> SavedFigure:
    labels = list(dict.fromkeys(label for stage in stages for label in stage.terms))
    figure, axes = panels(len(labels) + 1, 1.7)
    for ax, label in zip(axes, labels, strict=False):
        for stage in stages:
            if label in stage.terms:
                _line(ax, stage, stage.terms[label])
        for event in events:
            if event.term == label:
                style = MODEL_STYLES.get(event.stage, MODEL_STYLES["base"])
                ax.axvline(event.epoch, color=style["color"], linewidth=1, linestyle=(0, (1, 1)))
                ax.annotate(
                    event.kind, (event.epoch, 1), xycoords=("data", "axes fraction"),
                    xytext=(3, -9), textcoords="offset points", fontsize=8, color=style["color"],
                )  # fmt: skip
        ax.set_title(label.replace("_", " on "))
        ax.set_ylabel("nats")
    for stage in stages:
        _line(axes[-1], stage, stage.grad_norm)
    _gradient(figure, axes)
    title = "Loss terms during training"
    alt = f"{title}, before their weights, for {' and '.join(s.name for s in stages)}."
    return SavedFigure("dynamics-terms", title, alt, figure)


def draw_against(named: Sequence[tuple[str, Stage]]) -> list[SavedFigure]:
    """Draw the loss terms and gradient norms of several trainings in one figure."""
    with styled():
        labels = list(dict.fromkeys(label for _, stage in named for label in stage.terms))
        figure, axes = panels(len(labels) + 1, 1.9)
        for i, (name, stage) in enumerate(named):
            style = series(i) | {"marker": ""}
            for ax, label in zip(axes, labels, strict=False):
                if label in stage.terms:
                    _smooth(ax, stage, stage.terms[label], name, style)
            _smooth(axes[-1], stage, stage.grad_norm, name, style)
        for ax, label in zip(axes, labels, strict=False):
            ax.set_title(label.replace("_", " on "))
            ax.set_ylabel("nats")
        _gradient(figure, axes)
        title = "Loss terms of several trainings"
        alt = f"{title}, before their weights: {', '.join(name for name, _ in named)}."
        return [SavedFigure("dynamics-against", title, alt, figure)]


def _gradient(figure: Figure, axes: list[Axes]) -> None:
    axes[-1].set_title("gradient norm, before clipping")
    axes[-1].set_ylabel("L2 norm")
    axes[-1].set_xlabel("epochs over the forget set")
    legend(figure, axes)


def _losses(stages: Sequence[Stage]) -> SavedFigure:
    figure, axes = panels(len(stages), 2.1)
    for ax, stage in zip(axes, stages, strict=True):
        ax.plot(stage.epoch, stage.loss, color=FAINT, linewidth=1)
        smooth = running_mean(stage.loss, stage.window)
        ax.plot(stage.epoch, smooth, label="total loss", color=INK, linestyle="-")
        for i, label in enumerate(stage.terms):
            values = running_mean(stage.weighted(label), stage.window)
            name = f"{stage.weight_range(label)} {label.replace('_', ' on ')}"
            ax.plot(stage.epoch, values, label=name, **series(i) | {"marker": ""})
        ax.set_title(stage.name)
        ax.set_ylabel("nats")
        ax.legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("epochs over the forget set")
    title = "Total loss and its weighted terms"
    alt = f"{title}: running means over half an epoch."
    return SavedFigure("dynamics-loss", title, alt, figure)


def _memorising(stage: Stage) -> SavedFigure:
    figure, (ax,) = panels(1, 2.6)
    ax.plot(stage.epoch, stage.loss, color=FAINT, linewidth=1)
    ax.plot(stage.epoch, running_mean(stage.loss, stage.window), color=INK)
    ax.set_xlabel("epochs")
    ax.set_ylabel("NLL (nats per token)")
    ax.set_ylim(bottom=0)
    title = "Loss while memorising the data"
    return SavedFigure("dynamics-memorise", title, f"{title}, over epochs.", figure)


def _line(ax: Axes, stage: Stage, values: Any) -> None:
    style = MODEL_STYLES.get(stage.name, MODEL_STYLES["base"]) | {"marker": ""}
    _smooth(ax, stage, values, stage.name, style)


def _smooth(ax: Axes, stage: Stage, values: Any, label: str, style: dict[str, Any]) -> None:
    ax.plot(stage.epoch, values, color=style["color"], alpha=0.25, linewidth=0.9)
    ax.plot(stage.epoch, running_mean(values, stage.window), label=label, **style)


def draw_weights(
    facts: Sequence[ModuleFacts], agreements: Sequence[Agreement]
) -> list[SavedFigure]:
    """Draw norm and effective rank by layer, and overlap and sign conflict by density."""
    with styled():
        return [_by_layer(facts), *([_agreement(agreements)] if agreements else [])]


def _by_layer(facts: Sequence[ModuleFacts]) -> SavedFigure:
    figure, axes = panels(2, 2.2)
    for side in dict.fromkeys(f.model for f in facts):
        style = MODEL_STYLES[side] | {"linestyle": "", "markersize": 4, "alpha": 0.75}
        mine = [f for f in facts if f.model == side and f.layer is not None]
        x = [float(f.layer or 0) for f in mine]
        axes[0].plot(x, [f.norm for f in mine], label=side, **style)
        axes[1].plot(x, [f.effective_rank for f in mine], label=side, **style)
    axes[0].set_ylabel("Frobenius norm")
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylabel("effective rank")
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("layer; each point is one module")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, axes)
    title = "Norm and effective rank of the changes, by layer"
    return SavedFigure("weights-layers", title, f"{title}, of over and under.", figure)


def _agreement(agreements: Sequence[Agreement]) -> SavedFigure:
    figure, (ax,) = panels(1, 3.2)
    x = [a.density for a in agreements]
    ax.plot(x, [a.overlap for a in agreements], label="overlap of kept entries", **series(0))
    chance: dict[str, Any] = {"color": QUIET, "linestyle": (0, (1, 1.5)), "linewidth": 1.2}
    ax.plot(x, [a.overlap_by_chance for a in agreements], label="overlap by chance", **chance)
    ax.plot(x, [a.conflict for a in agreements], label="opposite signs", **series(1))
    ax.axhline(0.5, color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
    ax.set_xlabel("density (fraction of entries kept)")
    ax.set_ylabel("share of entries")
    ax.set_ylim(0, 1.02)
    ax.set_xlim(0, 1.03)
    legend(figure, [ax])
    marks = [
        Mark(ax, a.density, y, f"density {a.density:g}: {name} {y:.3f}")
        for a in agreements
        for name, y in (("overlap", a.overlap), ("opposite signs", a.conflict))
    ]
    title = "Overlap and sign conflict of the trimmed factors of over and under"
    return SavedFigure("weights-agreement", title, f"{title}, against density.", figure, marks)


def _pair(angles: Sequence[Angle], group: str, space: str) -> list[Angle]:
    wanted = ("pair", OVER_UNDER, group, space)
    return [
        a
        for a in angles
        if (a.model, a.vectors, a.group, a.space) == wanted
        and a.step is None
        and a.degrees is not None
    ]


def _time(a: Angle) -> float:
    return float(a.epoch if a.epoch is not None else a.step or 0)


def _degrees(ax: Axes) -> None:
    ax.set_ylabel("angle (degrees)")
    low, high = ax.get_ylim()
    ax.set_ylim(max(0.0, min(low, 60.0)), min(180.0, max(high, 95.0)))
    ax.axhline(90, color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
