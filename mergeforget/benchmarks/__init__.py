"""Benchmarks, one file each: data, metrics per split, and how they become one number.

To add one, write ``<name>.py`` here with a function decorated by ``@benchmark("<name>",
source=...)``. Nothing else needs an edit: the folder is the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mergeforget.registry import Registry

BENCHMARKS: Registry[Callable[..., Any]] = Registry("benchmark", __name__)
benchmark = BENCHMARKS.register
