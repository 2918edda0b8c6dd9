"""The retain term of RMU."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.losses._hidden import layer_of
from mergeforget.losses.kl import MASKS
from mergeforget.outputs import TokenOutputs


@unlearning_loss(
    "rmu_retain",
    source="Li et al. 2024, arXiv:2403.03218, section 4",
    needs=("hidden", "reference_hidden"),
)
def rmu_retain(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    layer: int = 7,
    mask: Literal["answer", "tokens", "all"] = "tokens",
) -> Tensor:
    """``mean ||h - h_ref||^2``: keep hidden states of the retain set where they were."""
    gap = layer_of(policy, layer) - layer_of(reference, layer).detach()
    return policy.token_mean((gap**2).sum(-1), MASKS[mask])
