"""Direct preference optimisation of a refusal over the answer to forget (IDK-DPO)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "dpo",
    source="Rafailov et al. 2023, arXiv:2305.18290; as unlearning Maini et al. 2024",
    needs=("answer", "refusal", "reference"),
)
def dpo(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    beta: float = 0.1,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Prefer "I don't know" to the forget answer, relative to the reference; a scalar, in nats.

    ``-(2 / beta) mean log sigmoid(beta (r(refusal) - r(answer)))`` with
    ``r = log p - log p_ref`` of a whole answer.

    Args:
        beta: Larger values keep the policy nearer to the reference.
        mask: Counted positions.
    """
    assert policy.refusal is not None and reference.refusal is not None
    kinds = MASKS[mask]
    liked = policy.refusal.sequence_logps(kinds) - reference.refusal.sequence_logps(kinds)
    disliked = policy.sequence_logps(kinds) - reference.sequence_logps(kinds)
    return policy.row_mean(-2 / beta * F.logsigmoid(beta * (liked - disliked)))
