"""Kullback-Leibler divergence from the reference on the retain set (KLR)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


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
        mask: Counted positions: the answer, all but padding, or all (ZJUKLAB's code).
    """
    value, _ = policy.divergence(_reference, reference)
    return policy.token_mean(value, MASKS[mask])


def _reference(logits: Tensor, reference: Tensor | None, labels: Tensor) -> Tensor:
    assert reference is not None
    return F.log_softmax(reference, -1)
