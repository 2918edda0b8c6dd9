"""Merge methods, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@merge_method("<name>",
source=...)``. It takes the stacked tensors of one module, (n, *shape), and one weight for each,
and returns the merged tensor. It is a pure function: space, device, streaming and files are the
engine's. Nothing else needs an edit: the folder is the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mergeforget.registry import Registry

MERGE_METHODS: Registry[Callable[..., Any]] = Registry("merge method", __name__)
merge_method = MERGE_METHODS.register
