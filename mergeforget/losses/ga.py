"""Gradient ascent on the forget set."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.losses.gd import gd
from mergeforget.outputs import TokenOutputs


@unlearning_loss("ga", source="Jang et al. 2022, arXiv:2210.01504")
def ga(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    reduction: Literal["tokens", "rows", "batch_mean"] = "tokens",
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """``-NLL`` of the forget set; a scalar, in nats.

    Known failure: it has no lower bound and diverges unless the training is stopped.

    Args:
        reduction: As for ``gd``.
        mask: As for ``gd``.
    """
    return -gd(policy, reduction=reduction, mask=mask)
