"""NPO without a reference."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("simnpo", source="Fan et al. 2024, arXiv:2410.07163, eq. 4")
def simnpo(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    beta: float = 4.5,
    delta: float = 0.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """``-(2 / beta) mean log sigmoid(beta (NLL - delta))`` over sequences; a scalar, in nats.

    Length normalisation replaces the reference model: answers that are already unlikely get a
    smaller gradient. Known failure: with ``delta`` 0, the gradient of short answers never vanishes.

    Args:
        delta: NLL, in nats, around which the gradient vanishes; the paper's gamma is beta * delta.
        mask: Counted positions.
    """
    return policy.row_mean(-2 / beta * F.logsigmoid(beta * (policy.nll(MASKS[mask]) - delta)))
