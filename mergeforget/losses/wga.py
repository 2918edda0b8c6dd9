"""Weighted gradient ascent."""

from __future__ import annotations

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("wga", source="Wang et al. 2025, arXiv:2502.19301")
def wga(
    policy: TokenOutputs, reference: TokenOutputs | None = None, *, beta: float = 1.0
) -> Tensor:
    """``-mean(p ** beta * l)`` with ``l = -log p`` of each token and the weight held fixed.

    What is forgotten already (small p) is pushed no further, which holds back the divergence of
    gradient ascent.
    """
    weight = (beta * policy.token_logps.detach()).exp()
    return policy.token_mean(weight * policy.token_logps)
