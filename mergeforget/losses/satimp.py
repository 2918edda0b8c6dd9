"""Gradient ascent weighted by saturation and importance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("satimp", source="Yang et al. 2025, arXiv:2505.11953")
def satimp(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    beta1: float = 5.0,
    beta2: float = 1.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """``-mean(p ** beta1 * (1 - p) ** beta2 * l)`` with the weight held fixed; in nats.

    Args:
        beta1: Larger values spare tokens that are already unlikely (saturation).
        beta2: Larger values spare tokens that any model predicts (importance).
        mask: Counted positions.
    """
    logps = policy.token_logps.detach()
    weight = (beta1 * logps).exp() * (-torch.expm1(logps)) ** beta2
    return policy.token_mean(weight * policy.token_logps, MASKS[mask])
