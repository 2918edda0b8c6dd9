"""Merge methods, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@merge_method("<name>",
source=...)``. It takes the stacked tensors of one module, (n, *shape), and one weight for each,
and returns the merged tensor. It is a pure function, on numpy arrays and on torch tensors: space,
device, streaming and files are the engine's. Nothing else needs an edit: the folder is the list.

Keyword-only arguments are what a recipe or the command line may set. Two are the engine's to
give: ``density``, and ``generator`` for a method that draws at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mergeforget.registry import Registry

MERGE_METHODS: Registry[Callable[..., Any]] = Registry("merge method", __name__)
merge_method = MERGE_METHODS.register
