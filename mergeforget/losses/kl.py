"""Kullback-Leibler divergence from the reference on the retain set (KLR)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import ANSWER, PADDING, PROMPT, TokenOutputs, widened

MASKS = {"answer": (ANSWER,), "tokens": (PROMPT, ANSWER), "all": (PADDING, PROMPT, ANSWER)}


@unlearning_loss(
    "kl", source="Maini et al. 2024, arXiv:2401.06121, section 4", needs=("reference_logits",)
)
def kl(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    mask: Literal["answer", "tokens", "all"] = "answer",
) -> Tensor:
    """``KL(reference || policy)`` of the next token, averaged over positions; in nats, >= 0.

    Args:
        mask: positions counted: of the answer, all but padding, or padding too (ZJUKLAB's code).
    """
    log_p = F.log_softmax(widened(policy.logits), -1)  # (tokens, vocabulary)
    log_q = F.log_softmax(widened(reference.logits), -1)
    divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    return policy.token_mean(divergence, MASKS[mask])
