"""Style and saving of figures, which are readable in greyscale and with colour blindness.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color). Each line also has its own marker
and dash.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mergeforget.files import replacing

INK, QUIET, FAINT = "#24292f", "#6e7781", "#d8dee4"
WIDTH = 5.6  # inches; narrow enough for readable text on a phone
RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.fonttype": "path",
    "svg.hashsalt": "mergeforget",  # makes files reproducible
    "text.parse_math": False,  # names come from user data
}
MODEL_STYLES: dict[str, dict[str, Any]] = {
    "base": {"color": "#6e7781", "marker": "s", "linestyle": (0, (1, 1.5))},
    "over": {"color": "#d55e00", "marker": "v", "linestyle": (0, (5, 1.5))},
    "under": {"color": "#0072b2", "marker": "^", "linestyle": (0, (5, 1.5, 1, 1.5))},
    "chosen": {"color": "#000000", "marker": "D", "linestyle": "-"},
}
SERIES: list[dict[str, Any]] = [
    {"color": "#009e73", "marker": "o", "linestyle": "-"},
    {"color": "#cc79a7", "marker": "s", "linestyle": (0, (6, 1.5))},
    {"color": "#56b4e9", "marker": "D", "linestyle": (0, (3, 1, 1, 1))},
    {"color": "#e69f00", "marker": "P", "linestyle": (0, (1, 1))},
    {"color": "#0072b2", "marker": "X", "linestyle": (0, (8, 2, 1, 2))},
    {"color": "#d55e00", "marker": "v", "linestyle": (0, (4, 2))},
]


@dataclass(frozen=True)
class Mark:
    """A point of a figure with a tooltip.

    Attributes:
        axes, x, y: Position in data coordinates.
        text: Text of the tooltip.
    """

    axes: Axes
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class SavedFigure:
    """A drawn figure.

    Attributes:
        name: File name without ending, for example ``angles-over``.
        title: Title of one line.
        alt: Alternative text for screen readers.
    """

    name: str
    title: str
    alt: str
    figure: Figure
    marks: list[Mark] = field(default_factory=list)


@contextmanager
def styled() -> Iterator[None]:
    """Apply the project's style within the block."""
    with rc_context(RC):
        yield


def panels(rows: int, height: float, *, share_x: bool = True) -> tuple[Figure, list[Axes]]:
    """Create a figure with ``rows`` axes below each other, ``height`` inches each."""
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=share_x, squeeze=False)
    return figure, [row[0] for row in axes]


def series(i: int) -> dict[str, Any]:
    """Return the style of the i-th line; styles repeat after the last."""
    return SERIES[i % len(SERIES)]


def legend(figure: Figure, axes: list[Axes], columns: int = 3) -> None:
    """Add one legend above all axes, with each label once and as many columns as fit."""
    handles: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for ncols in range(min(columns, len(handles)), 0, -1):
        drawn = figure.legend(
            list(handles.values()), list(handles), loc="outside upper left",
            ncols=ncols, handlelength=2.6, columnspacing=1.4,
        )  # fmt: skip
        if drawn.get_window_extent().width <= figure.bbox.width:
            break
        if ncols > 1:
            drawn.remove()


def widen_axis(ax: Axes, least: float = 0.02) -> None:
    """Widen the range of an axis whose values are nearly equal."""
    low, high = ax.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        ax.set_ylim(middle - least, middle + least)


def save(picture: SavedFigure, folder: Path) -> list[dict[str, Any]]:
    """Write NAME.png and NAME.svg.

    Returns:
        Marks with positions as fractions of the figure: ``{"x", "y", "text"}``, y downwards.
    """
    with styled():
        for kind, more in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
            with replacing(folder / f"{picture.name}.{kind}") as temporary:
                picture.figure.savefig(temporary, format=kind, **more)
            picture.figure.set_layout_engine(None)  # keep the layout of the PNG: it takes long
    return [_placed(mark, picture.figure) for mark in picture.marks]


def _placed(mark: Mark, figure: Figure) -> dict[str, Any]:
    pixels = mark.axes.transData.transform((mark.x, mark.y))
    x, y = figure.transFigure.inverted().transform(pixels)
    return {"x": round(float(x), 4), "y": round(1 - float(y), 4), "text": mark.text}
