"""Cross-entropy unlearning."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("ceu", source="Yang 2025, CE-U, arXiv:2503.01224", needs=("logits",))
def ceu(policy: TokenOutputs, reference: TokenOutputs | None = None) -> Tensor:
    """Cross entropy to the model's own prediction with the true token left out; in nats.

    The target, ``softmax`` of the logits with the label's at minus infinity, is held fixed: the
    gradient fades where the label is unlikely already.
    """
    value, entropy = policy.divergence(_without_label)
    return policy.token_mean(value + entropy)


def _without_label(logits: Tensor, reference: Tensor | None, labels: Tensor) -> Tensor:
    return F.log_softmax(logits.scatter(1, labels[:, None], float("-inf")), -1)
