"""Alternating token-weighted unlearning (ATWU)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "atwu",
    source="Yüce et al. 2026, ATWU, arXiv:2606.06320; its code: giorgosnikolaou/open-unlearning",
    needs=("scores",),
)
def atwu(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    beta: float = 5.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """``-mean(g l exp(-beta g l))``, the last factor held fixed; in nats.

    ``l`` is a token's negative log-likelihood and ``g`` in [0, 1] its score: a linear function of
    its hidden state, trained in alternation with the model to select the tokens that are specific
    to the forget set (``scorer`` in the recipe). The saturation ``exp(-beta g l)`` spares tokens
    that are already unlikely. Known failure: with few rows the scorer hardly moves from its start
    of 0.5, and the loss is that of gradient ascent with saturation.

    Args:
        beta: Larger values spare unlikely tokens sooner.
        mask: Counted positions.
    """
    scores = policy.scores
    if scores is None:  # the scorer's start
        scores = torch.full_like(policy.token_logps, 0.5)
    loss = -scores.detach().to(policy.token_logps) * policy.token_logps
    return -policy.token_mean(loss * (-beta * loss.detach()).exp(), MASKS[mask])
