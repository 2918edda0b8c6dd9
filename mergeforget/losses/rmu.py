"""Representation misdirection for unlearning."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.losses._hidden import steered
from mergeforget.outputs import TokenOutputs


@unlearning_loss("rmu", source="Li et al. 2024, arXiv:2403.03218, section 4", needs=("hidden",))
def rmu(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    layer: int = 7,
    coefficient: float = 6.5,
    seed: int = 0,
    mask: Literal["answer", "tokens", "all"] = "tokens",
) -> Tensor:
    """``mean ||h - c u||^2``: drive hidden states of the forget set to one random direction.

    ``u`` is a fixed random unit vector. The published code divides by the width as well, here and
    in ``rmu_retain``: the balance of the two is the same.

    Args:
        layer: counted from 0, after which the hidden states are read.
        coefficient: c, in units of the hidden states.
    """
    return steered(policy, layer, coefficient, seed, mask)
