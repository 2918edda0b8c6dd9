"""Entanglement-guided unlearning with a proxy constraint (EGUP)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "egup",
    source="Liu et al. 2025, EGUP, arXiv:2508.20443; after its abstract",
    needs=("answer", "alternate", "reference", "efforts"),
)
def egup(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    beta: float = 0.1,
    boundary: float = 1.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """NPO weighted by entanglement, with a penalty beyond the level of proxy rows; in nats.

    ``mean e_i (-(2 / beta) log sigmoid(beta (S_i - S_ref,i)) + boundary relu(NLL_i - b_i)^2``.
    The effort ``e_i`` of a row is larger the more its hidden state resembles those of retain rows,
    and falls as the state moves away from the reference's. The boundary ``b_i`` is the NLL of a
    generated answer to the same question under the reference, the level of what the model never
    learned. Known failure: generated answers that the model finds more likely than any fact set
    the boundary too low, and the row stays known.

    Args:
        beta: As for ``npo``.
        boundary: Weight of the penalty; 0 leaves it out.
        mask: Counted positions.
    """
    assert reference.refusal is not None
    kinds = MASKS[mask]
    rise = reference.sequence_logps(kinds) - policy.sequence_logps(kinds)  # (rows,)
    push = -2 / beta * F.logsigmoid(beta * rise)
    efforts = torch.ones_like(push) if policy.efforts is None else policy.efforts.to(push)
    beyond = (policy.nll(kinds) - reference.refusal.nll(kinds).detach()).clamp(min=0)
    return policy.row_mean(efforts * push + boundary * beyond**2)
