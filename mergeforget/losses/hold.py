"""Keep rows at the NLL that they have under the model before unlearning."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("hold", source="mergeforget, docs/unlearn.md", needs=("reference",))
def hold(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    beta: float = 1.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Smooth L1 distance of each sequence's NLL from the reference's; a scalar, in nats.

    ``mean h(NLL_i - NLL_ref_i)`` with ``h(x) = x^2 / (2 beta)`` for ``|x| < beta`` and
    ``|x| - beta / 2`` otherwise. On unseen rows, it prevents their NLL from rising with that of the
    forget rows.

    Args:
        beta: Difference, in nats per token, at which the loss becomes linear.
        mask: Counted positions.
    """
    kinds = MASKS[mask]
    difference = policy.nll(kinds) - reference.nll(kinds)  # (rows,)
    zero = difference.new_zeros(difference.shape)
    return policy.row_mean(F.smooth_l1_loss(difference, zero, reduction="none", beta=beta))
