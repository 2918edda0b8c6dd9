"""Unlearning objectives, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@unlearning_loss("<name>",
source=...)``. It takes what the policy and the reference say about some tokens and returns a
scalar to minimise. Keyword-only arguments are what a recipe may set. Nothing else needs an edit.

``needs=(...)`` names what must be computed for it; a loss without reads the log-probabilities of
the policy's answers. ``reference``: log-probabilities from the model before unlearning.
``logits``, ``reference_logits``: whole distributions. ``hidden``, ``reference_hidden``: hidden
states after the layer that its argument ``layer`` names. ``refusal``: refusals to the same prompts,
in ``policy.refusal``; and ``answer`` where the answers are read besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mergeforget.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

UNLEARNING_LOSSES: Registry[Callable[..., Tensor]] = Registry("loss", __name__)
unlearning_loss = UNLEARNING_LOSSES.register
