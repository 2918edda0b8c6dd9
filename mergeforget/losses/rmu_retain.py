"""The retain term of RMU."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.losses._hidden import layer_of, squared_distance
from mergeforget.outputs import MASKS, TokenOutputs


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
    normalise: Literal["none", "width"] = "none",
) -> Tensor:
    """Keep the retain set's hidden states close to the reference: ``mean ||h - h_ref||^2``.

    Args:
        layer: Counted from 0; the hidden states after it are read.
        mask: Counted positions.
        normalise: "width" divides by the width, as the published code does.
    """
    gap = layer_of(policy, layer) - layer_of(reference, layer).detach()
    return policy.token_mean(squared_distance(gap, normalise), MASKS[mask])
