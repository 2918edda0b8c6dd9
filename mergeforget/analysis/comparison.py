"""Runs side by side as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergeforget.analysis.report import render
from mergeforget.analysis.tables import cell_of, label_of, measures_of
from mergeforget.files import write_text
from mergeforget.score import Score


def write_comparison(scores: Mapping[str, list[Score]], path: Path) -> None:
    """Write a page with a row a model and a column a score.

    Args:
        scores: by the name of the model, for example ``RUN: MODEL``, on one part of the data each.
    """
    measures = measures_of(dict(scores))
    rows = [(name, [cell_of(every, m) for m in measures]) for name, every in scores.items()]
    context = {"title": "mergeforget: comparison", "labels": map(label_of, measures), "rows": rows}
    write_text(path, render("comparison.html", context))
