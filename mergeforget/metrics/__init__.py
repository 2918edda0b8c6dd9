"""Metrics, one file each.

A metric is a function from what was measured on one model to a score: ``fn(measured, split=...,
task=...)``; None where the measured data has no row it reads. To add one, write ``<name>.py`` here
with a function decorated by ``@metric("<name>", source=...)``, and give its scores a versioned
``definition``, so that figures by two readings of a formula are never mixed. Nothing else needs an
edit: the folder is the list.
"""

from __future__ import annotations

from collections.abc import Callable

from mergeforget.registry import Registry
from mergeforget.score import Score

Metric = Callable[..., Score | None]
METRICS: Registry[Metric] = Registry("metric", __name__, "mergeforget.metrics")
metric = METRICS.register
