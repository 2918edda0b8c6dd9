"""RMU with a steering coefficient proportional to the activation norm."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.losses._hidden import layer_of, steered
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "adaptive_rmu",
    source="Dang et al. 2024, arXiv:2408.06223",
    needs=("hidden", "reference_hidden"),
    additive=False,
)
def adaptive_rmu(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    layer: int = 7,
    scale: float = 5.0,
    seed: int = 0,
    mask: Literal["answer", "tokens", "all"] = "tokens",
    normalise: Literal["none", "width"] = "none",
) -> Tensor:
    """RMU with ``c = scale * mean ||h_ref||`` of the reference on the same tokens.

    A fixed coefficient is too small for the large activations of deep layers. The mean is
    taken over the micro-batch. Known failure: as ``rmu``.

    Args:
        layer: Counted from 0; the hidden states after it are read.
        scale: Multiple of the reference's mean activation norm.
        mask: Counted positions.
        normalise: "width" divides the squared distance by the width.
    """
    norms = layer_of(reference, layer).norm(dim=-1)
    size = policy.batch_mean(norms, MASKS[mask]).detach()
    return steered(policy, layer, scale * size, seed, mask, normalise)
