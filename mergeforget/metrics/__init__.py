"""Metrics, one file each.

A metric is a function from the measurements of one model to a score: ``fn(measured, split=...,
task=...)``. It returns None if there are no rows for it. To add one, write ``<name>.py`` here with
a function decorated by ``@metric("<name>", source=...)``, and give its scores a versioned
``definition``, so that scores of different formulas are never compared. No other file needs an
edit; ``--metrics <name>`` or ``evaluation.metrics`` of a recipe selects it.
"""

from __future__ import annotations

from collections.abc import Callable

from mergeforget.registry import Registry
from mergeforget.score import Score

Metric = Callable[..., Score | None]
METRICS: Registry[Metric] = Registry("metric", __name__, "mergeforget.metrics")
metric = METRICS.register
