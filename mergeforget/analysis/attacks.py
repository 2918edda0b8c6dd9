"""Results of attacks on a run, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mergeforget.analysis.evidence import MissingError
from mergeforget.analysis.style import (
    INK,
    MODEL_STYLES,
    Mark,
    SavedFigure,
    legend,
    panels,
    series,
    styled,
)
from mergeforget.attack.methods import ATTACKS
from mergeforget.attack.result import Result, read_results
from mergeforget.files import reading
from mergeforget.run import Run

AXES = {  # attack: key of the horizontal axis, and its label
    "relearn": ("step", "steps of relearning"),
    "quantise": ("bits", "bits of a weight"),
    "prompts": ("kind", "kind of prompt"),
    "probe": ("layer", "layer (0: the embeddings)"),
    "relearn_unrelated": ("step", "steps of training on unrelated text"),
    "nf4": ("bits", "bits of a weight"),
    "gptq": ("bits", "bits of a weight"),
    "awq": ("bits", "bits of a weight"),
    "logit_lens": ("layer", "layer"),
    "exposure": ("condition", "rows"),
    "multiple_choice": ("condition", "rows"),
}
METRICS = {
    "nll": "NLL, forget\n(nats per token)",
    "greedy_match": "exact answers,\nforget",
    "regurgitation": "ROUGE-L recall,\nforget",
    "mia_auc": "MIA AUC",
    "row_leak_rate": "rows that leak",
    "auc": "AUC of the probe",
    "value": "value, forget",
}
TITLES = {
    "relearn": "Relearning",
    "quantise": "Quantisation",
    "prompts": "Prompts",
    "probe": "Probes of the hidden states",
    "relearn_unrelated": "Relearning on unrelated text",
    "nf4": "4-bit NormalFloat",
    "gptq": "GPTQ (calibrated, 4 bits)",
    "awq": "AWQ (calibrated, 4 bits)",
    "exposure": "Rank of the true answer (exposure, bits)",
    "multiple_choice": "Multiple choice (accuracy)",
    "logit_lens": "Logit lens (log-likelihood, nats per token)",
}
LABELS = {"before": "before unlearning", "control": "never saw the data"}
CONTROL = {"color": "#009e73", "marker": "o", "linestyle": (0, (3, 1, 1, 1))}


def run_attacks(run: Run) -> list[Result]:
    """Read the results of all attacks on the run's models.

    Raises:
        MissingError: There are none yet.
    """
    results = [r for name in ATTACKS.names() for r in read_results(run.attacks, name)]
    if not results:
        raise MissingError(
            f"No attack was run on {run.root}. `mergeforget attack {run.root}` tries to recover "
            "the data by relearning, quantisation, prompts and probes."
        )
    return results


def _check_rows(result: Result) -> None:
    """Raise KeyError or TypeError if a row cannot be plotted."""
    key, _ = AXES.get(result.attack, ("kind", ""))
    for row in result.rows:
        row[key]
        for metric in METRICS:
            if isinstance(row.get(metric), str | bool):
                raise TypeError(f"{metric} is {row[metric]!r}, not a number")
        if "rows_leaked" in row:
            row["rows"]


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the measured values of all attacks as flat rows."""
    return [{"attack": r.attack, "attacked": r.model, **row} for r in results for row in r.rows]


def draw_attacks(results: Sequence[Result]) -> list[SavedFigure]:
    """Draw one figure per attack, with all attacked models."""
    for result in results:
        with reading(f"The result of the attack {result.attack} on {result.model}"):
            _check_rows(result)
    names = dict.fromkeys(r.attack for r in results if r.rows)
    return [draw_attack([r for r in results if r.attack == name]) for name in names]


def draw_attack(results: Sequence[Result]) -> SavedFigure:
    """Draw the figure of one attack, with a panel per metric and a line or bar per model."""
    name = results[0].attack
    results = [r for r in results if r.rows]
    key, label = AXES.get(name, ("kind", "kind of prompt"))
    title = TITLES.get(name, name.replace("_", " ").capitalize())
    models: dict[str, list[dict[str, Any]]] = {row["model"]: [] for r in results for row in r.rows}
    for result in results:  # a model that several were compared with is shown once
        for model in dict.fromkeys(row["model"] for row in result.rows):
            models[model] = [row for row in result.rows if row["model"] == model]
    metrics = [m for m in METRICS if any(r.get(m) is not None for v in models.values() for r in v)]
    with styled():
        figure, axes = panels(len(metrics), 3.2 if len(metrics) == 1 else 1.8)
        marks = []
        for ax, metric in zip(axes, metrics, strict=True):
            draw = _bars if key in ("kind", "condition") else _lines
            marks += draw(ax, models, key, metric)
            ax.set_ylabel(METRICS[metric])
            if metric in ("mia_auc", "auc"):
                ax.axhline(0.5, color=INK, linewidth=0.8)
        axes[-1].set_xlabel(label)
        legend(figure, axes)
    shown = ", ".join(METRICS[m].replace("\n", " ") for m in metrics)
    alt = f"{title}: {shown}, by {label}."
    return SavedFigure(f"attack-{name}", title, alt, figure, marks)


def style_of(model: str, place: int) -> dict[str, Any]:
    """Return colour, marker and dash of a model's line."""
    if model == "control":
        return CONTROL
    known = "base" if model == "before" else model
    if known in MODEL_STYLES:
        return MODEL_STYLES[known]
    return MODEL_STYLES["chosen"] if place == 0 else series(place)


def _lines(ax: Axes, models: dict[str, list[dict[str, Any]]], key: str, metric: str) -> list[Mark]:
    ticks = list(dict.fromkeys(row[key] for rows in models.values() for row in rows))
    words = any(isinstance(tick, str) for tick in ticks)
    marks = []
    for place, (model, rows) in enumerate(models.items()):
        points = [(row[key], row[metric]) for row in rows if row.get(metric) is not None]
        if not points:
            continue
        x = [ticks.index(k) if words else k for k, _ in points]
        y = [value for _, value in points]
        title = LABELS.get(model, model)
        style = style_of(model, place)
        if len(x) == 1:
            ax.axhline(y[0], label=title, color=style["color"], linestyle=style["linestyle"])
        else:
            ax.plot(x, y, label=title, **style)
        marks += [
            Mark(ax, a, b, f"{title}, {key} {k}: {b:.3f}")
            for a, b, (k, _) in zip(x, y, points, strict=True)
        ]
    if words:
        ax.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))  # steps and layers are integers
    return marks


def _counted(row: dict[str, Any], value: float) -> str:
    if "rows_leaked" in row:
        return f"{row['rows_leaked']} of {row['rows']} rows"
    return f"{value:.3f}"


def _bars(ax: Axes, models: dict[str, list[dict[str, Any]]], key: str, metric: str) -> list[Mark]:
    models = {m: [r for r in rows if r.get(metric) is not None] for m, rows in models.items()}
    kinds = list(dict.fromkeys(str(row[key]) for rows in models.values() for row in rows))
    width = 0.8 / len(models)
    marks = []
    for place, (model, rows) in enumerate(models.items()):
        style, title = style_of(model, place), LABELS.get(model, model)
        x = [kinds.index(str(row[key])) + (place + 0.5) * width - 0.4 for row in rows]
        y = [row[metric] for row in rows]
        hatch = ("", "//", "..", "xx", "--")[place % 5]  # readable in greyscale prints
        ax.bar(
            x, y, width * 0.92, label=title, color=style["color"], hatch=hatch, edgecolor="white"
        )
        marks += [
            Mark(ax, a, b, f"{title}, {row[key]}: {_counted(row, b)}")
            for a, b, row in zip(x, y, rows, strict=True)
        ]
    ax.set_xticks(range(len(kinds)), kinds)
    if metric != "value":
        ax.set_ylim(0, 1.03)
    return marks
