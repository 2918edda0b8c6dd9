"""Effective unlearning loss: gradient interference (GI)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "eul",
    source="Sun and Li 2025, arXiv:2507.16263, eq. 2 and section 5.2.5",
    additive=False,
)
def eul(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    alpha: float = 1.0,
    power: int = 1,
    floor: float = 0.01,
    reduction: Literal["batch", "rows"] = "batch",
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """``(alpha / NLL) ** power``: large for known answers, small for forgotten ones; a scalar.

    On a memorised set NLL goes to 0 and the loss to infinity. Below ``floor`` the loss continues
    along its tangent: the value is continuous and the gradient bounded. (The paper has no bound. A
    plain clamp would have gradient 0, and the best-known answers would never be forgotten.) The
    history records the share of clamped values as ``clamped``.

    The loss is not additive: one batch of 32 rows and 8 micro-batches of 4 rows give different
    gradients with ``reduction: batch``, since each micro-batch is inverted separately.

    Args:
        power: 2 is GI^2, which its authors found worse.
        floor: In nats; 0 is the paper's loss without a bound.
        reduction: Invert the token mean of the micro-batch (published), or each row's own.
        mask: Counted positions; the published code counts prompt and answer (``tokens``).
    """
    whole = reduction == "batch"
    kinds = MASKS[mask]
    nll = policy.batch_mean(-policy.token_logps, kinds)[None] if whole else policy.nll(kinds)
    below = nll.detach() < floor
    edge = nll.detach().clamp(min=floor)
    value = (alpha / nll.clamp(min=floor)) ** power
    tangent = (alpha / edge) ** power * (1 - power * (nll - edge) / edge)
    bounded = tangent.where(below, value)

    def mean(values: Tensor) -> Tensor:
        return policy.share * values.squeeze(0) if whole else policy.row_mean(values)

    policy.notes["clamped"] = mean(below.to(bounded.dtype))
    return mean(bounded)
