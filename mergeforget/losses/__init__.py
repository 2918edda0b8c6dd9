"""Unlearning objectives, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@unlearning_loss("<name>",
source=...)``. It takes what the policy and the reference say about some tokens and returns a
scalar to minimise. Keyword-only arguments are what a recipe may set. Nothing else needs an edit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mergeforget.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

UNLEARNING_LOSSES: Registry[Callable[..., Tensor]] = Registry("loss", __name__)
unlearning_loss = UNLEARNING_LOSSES.register
