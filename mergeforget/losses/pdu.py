"""Logit flattening on the forget set (PDU)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "pdu",
    source="Entesari et al. 2025, Primal-Dual Unlearning, arXiv:2506.05314",
    needs=("logits",),
)
def pdu(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    mask: Literal["answer", "tokens", "all"] = "tokens",
) -> Tensor:
    """``mean (max z - mean z)^2`` over positions: drives the next-token distribution to uniform.

    Combine it with ``gd`` on the retain set and ``dual`` in the recipe's training section, which
    raises the retain weight while the retain loss is above its limit (the primal-dual part).
    Known failure: a uniform prediction is recognisable by its high loss (AUC near 0).

    Args:
        mask: Counted positions. The published code counts padding as well ("all").
    """
    return policy.token_mean(policy.of_logits(_squared_margin), MASKS[mask])


def _squared_margin(logits: Tensor, _: Tensor | None) -> Tensor:
    return (logits.max(-1).values - logits.mean(-1)) ** 2
