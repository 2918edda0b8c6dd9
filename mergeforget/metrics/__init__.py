"""Metrics, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@metric("<name>",
source=...)``. Nothing else needs an edit: the folder is the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mergeforget.registry import Registry

METRICS: Registry[Callable[..., Any]] = Registry("metric", __name__)
metric = METRICS.register
