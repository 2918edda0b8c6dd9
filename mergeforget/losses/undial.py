"""Self-distillation with adjusted logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("undial", source="Dong et al. 2024, arXiv:2402.10052", needs=("reference_logits",))
def undial(policy: TokenOutputs, reference: TokenOutputs, *, beta: float = 10.0) -> Tensor:
    """Cross entropy to ``softmax(z_ref - beta onehot(label))``; a scalar, in nats.

    The reference teaches, with the true token made less likely by ``beta`` logits.
    """

    def lowered(logits: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return F.log_softmax(teacher - beta * F.one_hot(labels, teacher.shape[1]), -1)

    value, entropy = policy.divergence(lowered, reference)
    return policy.token_mean(value + entropy)
