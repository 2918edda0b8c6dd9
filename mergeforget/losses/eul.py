"""Effective unlearning loss: gradient interference (GI)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("eul", source="Sun and Li 2025, arXiv:2507.16263, eq. 2")
def eul(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    alpha: float = 1.0,
    floor: float = 0.01,
    reduction: Literal["batch", "rows"] = "batch",
) -> Tensor:
    """``alpha / NLL``: large where the answer is known, and quiet once it is gone; a scalar.

    On a memorised set NLL goes to 0 and the loss to infinity, so NLL is kept from falling below
    ``floor``. Below it the gradient is that at the floor, not 0: the paper's has no bound, and with
    a plain clamp what is known best would never be forgotten. The share of clamped values is in
    the history as ``clamped``.

    Args:
        floor: in nats; 0 is the paper's loss, without any.
        reduction: one NLL, the token mean of the micro-batch (published), or one a row.
    """
    return interfere(policy, alpha, floor, reduction, power=1)


def interfere(
    policy: TokenOutputs, alpha: float, floor: float, reduction: str, power: int
) -> Tensor:
    """``(alpha / NLL) ** power`` of the micro-batch or of each row, NLL bounded from below."""
    whole = reduction == "batch"
    nll = policy.batch_mean(-policy.token_logps)[None] if whole else policy.nll()
    below = nll.detach() < floor
    policy.notes["clamped"] = float(below.float().sum()) * (
        policy.share if whole else policy.share / policy.rows
    )
    # the tangent at the floor goes on below it: same value there, bounded value and gradient
    edge = nll.detach().clamp(min=floor)
    value = (alpha / nll.clamp(min=floor)) ** power
    tangent = (alpha / edge) ** power * (1 - power * (nll - edge) / edge)
    bounded = tangent.where(below, value)
    return policy.share * bounded.squeeze(0) if whole else policy.row_mean(bounded)
