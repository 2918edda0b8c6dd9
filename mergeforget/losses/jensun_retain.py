"""Jensen-Shannon divergence from the reference (JensUn, retain term)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mergeforget.chunked_logprobs import widened
from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "jensun_retain",
    source="Singh et al. 2025, JensUn, arXiv:2509.02820, eq. 5",
    needs=("logits", "reference_logits"),
)
def jensun_retain(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    mask: Literal["answer", "tokens", "all"] = "answer",
) -> Tensor:
    """``JSD(policy || reference)`` of the next token, averaged over positions; in [0, ln 2] nats.

    Bounded and symmetric, unlike ``kl``: a single surprising token cannot dominate the step.

    Args:
        mask: Counted positions. The published code counts every position ("all").
    """
    log_p = F.log_softmax(widened(policy.logits), -1)
    log_q = F.log_softmax(widened(reference.logits), -1).detach()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    value = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2
    return policy.token_mean(value, MASKS[mask])
