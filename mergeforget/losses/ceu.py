"""Cross-entropy unlearning (CE-U)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("ceu", source="Yang 2025, CE-U, arXiv:2503.01224", needs=("logits",))
def ceu(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    skip_first: bool = False,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Cross entropy to the model's own prediction without the true token; a scalar, in nats.

    The target is the ``softmax`` of the logits with the label's logit at minus infinity. It is
    held fixed, so the gradient vanishes as the label becomes unlikely. Known failure: without
    a retain term, general ability drops with the learning rate.

    Args:
        skip_first: Skip the first token of each answer, as the published code does by default: it
            often follows from the question.
        mask: Counted positions.
    """
    value, entropy = policy.divergence(_without_label)
    loss = value + entropy
    if not skip_first:
        return policy.token_mean(loss, MASKS[mask])
    kept = loss.masked_fill(policy.first_answer_token, 0.0)
    tokens = policy.total(MASKS[mask])
    rows = policy.own_rows if policy.row_total is None else policy.row_total
    return policy.token_mean(kept, MASKS[mask]) * (tokens / max(tokens - rows, 1))


def _without_label(logits: Tensor, reference: Tensor | None, labels: Tensor) -> Tensor:
    return F.log_softmax(logits.scatter(1, labels[:, None], float("-inf")), -1)
