"""Weighted gradient ascent."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("wga", source="Wang et al. 2025, arXiv:2502.19301")
def wga(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    beta: float = 1.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """``-mean(p ** beta * l)`` with ``l = -log p`` of each token and the weight held fixed.

    Tokens that are already forgotten (small p) get a small weight, which slows the divergence of
    gradient ascent. Known failure: memorised tokens with p near 1 have a gradient near 0 as well,
    so forgetting starts slowly.

    Args:
        beta: Exponent of the weight; 0 is gradient ascent.
        mask: Counted positions.
    """
    weight = (beta * policy.token_logps.detach()).exp()
    return policy.token_mean(weight * policy.token_logps, MASKS[mask])
