"""NPO without a reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("simnpo", source="Fan et al. 2024, arXiv:2410.07163, eq. 4")
def simnpo(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    beta: float = 4.5,
    delta: float = 0.0,
) -> Tensor:
    """``-(2 / beta) mean log sigmoid(beta (NLL - delta))`` over sequences; a scalar, in nats.

    The mean over an answer's length takes the reference's place: what is unlikely already is
    pushed less.

    Args:
        delta: the NLL, in nats, around which the push fades; the paper's gamma is beta delta.
    """
    return policy.row_mean(-2 / beta * F.logsigmoid(beta * (policy.nll() - delta)))
