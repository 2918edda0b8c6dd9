"""Effective unlearning loss: gradient interference (GI)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("eul", source="Sun and Li 2025, arXiv:2507.16263, eq. 2 and section 5.2.5")
def eul(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    alpha: float = 1.0,
    power: int = 1,
    floor: float = 0.01,
    reduction: Literal["batch", "rows"] = "batch",
) -> Tensor:
    """``(alpha / NLL) ** power``: large where the answer is known, quiet once it is gone; a scalar.

    On a memorised set NLL goes to 0 and the loss to infinity. Below ``floor`` the tangent goes on:
    same value there, but bounded gradient. (The paper has no bound; with a plain clamp the gradient
    would be 0, and what is known best would never be forgotten.) The share of values below it is in
    the history as ``clamped``.

    Args:
        power: 2 is GI^2, which its authors found worse.
        floor: in nats; 0 is the paper's loss, without any.
        reduction: one NLL, the token mean of the micro-batch (published), or one a row.
    """
    whole = reduction == "batch"
    nll = policy.batch_mean(-policy.token_logps)[None] if whole else policy.nll()
    below = nll.detach() < floor
    edge = nll.detach().clamp(min=floor)
    value = (alpha / nll.clamp(min=floor)) ** power
    tangent = (alpha / edge) ** power * (1 - power * (nll - edge) / edge)
    bounded = tangent.where(below, value)

    def mean(values: Tensor) -> Tensor:
        return policy.share * values.squeeze(0) if whole else policy.row_mean(values)

    policy.notes["clamped"] = float(mean(below.to(bounded.dtype)))
    return mean(bounded)
