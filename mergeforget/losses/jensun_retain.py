"""Jensen-Shannon divergence from the reference (JensUn, retain term)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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
    return policy.token_mean(policy.of_logits(_divergence, reference), MASKS[mask])


def _divergence(logits: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None
    log_p, log_q = F.log_softmax(logits, -1), F.log_softmax(reference, -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2
