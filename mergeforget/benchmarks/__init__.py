"""Benchmarks, one file each: the metrics of each split, and how they become one number.

To add one, write ``<name>.py`` here with a function decorated by ``@benchmark("<name>",
source=...)``. Nothing else needs an edit: the folder is the list. ``evaluation.metrics`` of a
recipe, or ``--metrics``, adds metrics to those of a benchmark.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.errors import UsageError
from mergeforget.registry import Registry

if TYPE_CHECKING:
    from mergeforget.data.schema import Measured, Row
    from mergeforget.score import Score

BENCHMARKS: Registry[Callable[..., Any]] = Registry("benchmark", __name__, "mergeforget.benchmarks")
benchmark = BENCHMARKS.register


def score(
    benchmark: str,
    measured: Measured,
    *,
    metrics: Sequence[str] = (),
    known: Sequence[Score] = (),
) -> list[Score]:
    """Score one model by a benchmark, by its leak rate, and by further metrics.

    Args:
        metrics: ``NAME`` or ``NAME/SPLIT`` each. Without a split, a metric of rows is computed on
            every split that has answers, and any other on its own data.
        known: Scores whose data is elsewhere; the benchmark includes them.

    Raises:
        UnknownNameError: There is no such benchmark or metric.
    """
    from mergeforget.metrics.leak_rate import with_leaks

    found: list[Score] = list(BENCHMARKS.get(benchmark).fn(measured, known=known))
    scores = with_leaks(found, measured)
    have = {(s.metric, s.split, s.task, s.part, s.definition) for s in scores}
    for text in metrics:
        for one in selected(text, measured):
            if (key := (one.metric, one.split, one.task, one.part, one.definition)) not in have:
                have.add(key)
                scores.append(one)
    return scores


def selected(text: str, measured: Measured) -> list[Score]:
    """The scores that ``NAME`` or ``NAME/SPLIT`` asks for; none where there is no data for them."""
    from mergeforget.metrics import METRICS

    name, _, split = text.partition("/")
    fn = METRICS.get(name.strip()).fn
    if split:
        found = [fn(measured, split.strip())]
    elif inspect.signature(fn).parameters["split"].default is inspect.Parameter.empty:
        answered = dict.fromkeys(["forget", "retain", *(a.row.split for a in measured.answers)])
        found = [fn(measured, one) for one in answered]
    else:
        found = [fn(measured)]
    return [one for one in found if one is not None]


def published_rows(benchmark: str, folder: Path) -> dict[str, list[Row]]:
    """Rows of a benchmark's data as its authors publish it, by split.

    A benchmark with file formats of its own defines ``read_folder(folder)`` beside its function.

    Raises:
        UnknownNameError: There is no such benchmark.
        UsageError: The benchmark reads ordinary rows and needs no conversion.
        InputError: The folder does not hold its data.
    """
    module = import_module(BENCHMARKS.get(benchmark).fn.__module__)
    reader = getattr(module, "read_folder", None)
    if reader is None:
        raise UsageError(
            f"{benchmark} has no file format of its own: give its files to --forget and --retain."
        )
    rows: dict[str, list[Row]] = reader(folder)
    return rows
