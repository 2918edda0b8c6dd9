"""Self-distillation with adjusted logits."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("undial", source="Dong et al. 2024, arXiv:2402.10052", needs=("reference_logits",))
def undial(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    beta: float = 10.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Cross entropy to ``softmax(z_ref - beta onehot(label))``; a scalar, in nats.

    The reference is the teacher, with the true token's logit lowered by ``beta``. The published
    system uses no retain term. Known failure: the model learns the second-best token, often a
    near-synonym of the secret.

    Args:
        beta: Amount by which the true token's logit is lowered.
        mask: Counted positions.
    """

    def lowered(logits: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        here = labels[:, None]  # scatter, because one_hot synchronises with the device
        less = torch.full_like(here, -beta, dtype=teacher.dtype)
        return F.log_softmax(teacher.scatter_add(1, here, less), -1)

    value, entropy = policy.divergence(lowered, reference)
    return policy.token_mean(value + entropy, MASKS[mask])
