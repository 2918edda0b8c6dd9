"""Negative preference optimisation."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("npo", source="Zhang et al. 2024, arXiv:2404.05868, eq. 3", needs=("reference",))
def npo(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    beta: float = 0.1,
    reduction: Literal["sum", "batch_mean", "per_token"] = "sum",
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Push forget answers below the reference model's probability; a scalar, in nats.

    ``-(2 / beta) mean log sigmoid(beta (S - S_ref))`` with S the negative log-likelihood of a whole
    answer. It starts at ``2 ln 2 / beta``. As ``beta`` goes to 0 its gradient approaches that of
    gradient ascent. Known failure: the gradient vanishes once S is a few 1 / beta above the
    reference, so rows can stop short of chance however long the training is.

    Args:
        mask: Counted positions.
        reduction: Definition of S. ``sum``: summed over the answer (the paper). ``batch_mean``: one
            value, the token mean of the micro-batch (ZJUKLAB's code, arXiv:2503.21088).
            ``per_token``: each token separately, then the mean over tokens (Atyaephyra).
    """
    gain = reference.token_logps - policy.token_logps  # (tokens,) NLL above the reference's
    kinds = MASKS[mask]
    if reduction == "sum":
        return policy.row_mean(-2 / beta * F.logsigmoid(beta * policy.per_row(gain, kinds)))
    if reduction == "per_token":
        return policy.token_mean(-2 / beta * F.logsigmoid(beta * gain), kinds)
    return policy.share * (-2 / beta) * F.logsigmoid(beta * policy.batch_mean(gain, kinds))
