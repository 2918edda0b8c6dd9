"""What the representation losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from mergeforget.losses.kl import MASKS
from mergeforget.outputs import TokenOutputs


def layer_of(outputs: TokenOutputs, layer: int) -> Tensor:
    """(tokens, width) float32 hidden states after a layer, counted from 0."""
    assert outputs.hidden is not None, "a loss read hidden states without naming them in its needs"
    hidden = outputs.hidden[layer]
    return hidden if hidden.dtype == torch.float64 else hidden.float()


def steered(policy: TokenOutputs, layer: int, size: Tensor | float, seed: int, mask: str) -> Tensor:
    """Mean squared distance of hidden states from ``size`` times a fixed random unit vector.

    The vector is uniform in [0, 1) before it is normalised, as in RMU's code; it depends on the
    seed and the width alone.
    """
    hidden = layer_of(policy, layer)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.rand(hidden.shape[1], generator=generator)
    direction = (direction / direction.norm()).to(hidden)
    return policy.token_mean(((hidden - size * direction) ** 2).sum(-1), MASKS[mask])
