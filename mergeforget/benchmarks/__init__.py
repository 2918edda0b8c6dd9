"""Benchmarks, one file each: the metrics of each split, and their aggregation.

To add one, write ``<name>.py`` here with a function decorated by ``@benchmark("<name>",
source=...)``. No other file needs an edit. ``evaluation.metrics`` of a recipe, or ``--metrics``,
adds metrics to those of a benchmark. The decorator takes facts about the published code:

- ``truncated=(SPLIT, ...)``: references are truncated to the number of tokens that are generated;
- ``as_written=(SPLIT, ...)``: the model continues after the prompt's own tokens, even if the prompt
  ends with a space that the tokenizer would join to the answer;
- ``copies=True``: every row of a published file counts, also one that repeats another.
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
    """Compute the scores of a benchmark, the leak rate, and further metrics.

    Args:
        metrics: ``NAME`` or ``NAME/SPLIT`` each. Without a split, a metric of rows is computed on
            every split with answers, and any other metric on its own data.
        known: Scores computed elsewhere, which the benchmark includes.

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
    """Return the scores of ``NAME`` or ``NAME/SPLIT``; an empty list if there is no data."""
    from mergeforget.metrics import METRICS

    name, _, split = text.partition("/")
    fn = METRICS.get(name.strip()).fn
    if split:
        scores = [fn(measured, split.strip())]
    elif inspect.signature(fn).parameters["split"].default is inspect.Parameter.empty:
        answered = dict.fromkeys(["forget", "retain", *(a.row.split for a in measured.answers)])
        scores = [fn(measured, one) for one in answered]
    else:
        scores = [fn(measured)]
    return [one for one in scores if one is not None]


def published_rows(benchmark: str, folder: Path) -> dict[str, list[Row]]:
    """Read a benchmark's published data, and return its rows by split.

    A benchmark with its own file formats defines ``read_folder(folder)`` in its module.

    Raises:
        UnknownNameError: There is no such benchmark.
        UsageError: The benchmark reads ordinary rows and needs no conversion.
        InputError: The folder does not contain its data.
    """
    module = import_module(BENCHMARKS.get(benchmark).fn.__module__)
    reader = getattr(module, "read_folder", None)
    if reader is None:
        raise UsageError(
            f"{benchmark} has no file format of its own: pass its files to --forget and --retain."
        )
    rows: dict[str, list[Row]] = reader(folder)
    return rows
