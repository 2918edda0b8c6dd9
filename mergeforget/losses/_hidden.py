"""Arithmetic shared by the representation losses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mergeforget.outputs import MASKS, TokenOutputs

Normalise = Literal["none", "width"]


def layer_of(outputs: TokenOutputs, layer: int) -> Tensor:
    """Hidden states after a layer, counted from 0: (tokens, width), float32 or wider."""
    assert outputs.hidden is not None, "a loss reads hidden states that its needs do not list"
    hidden = outputs.hidden[layer]
    return hidden if hidden.dtype == torch.float64 else hidden.float()


def squared_distance(gap: Tensor, normalise: Normalise) -> Tensor:
    """Squared norm of each row of ``gap``, (tokens, width), divided by the width on request."""
    return (gap**2).mean(-1) if normalise == "width" else (gap**2).sum(-1)


def steered(
    policy: TokenOutputs,
    layer: int,
    size: Tensor | float,
    seed: int,
    mask: str,
    normalise: Normalise = "none",
) -> Tensor:
    """Mean squared distance of hidden states from ``size`` times a fixed random unit vector.

    The vector is uniform in [0, 1) before normalisation, as in RMU's code. It depends only on the
    seed and the width.
    """
    hidden = layer_of(policy, layer)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.rand(hidden.shape[1], generator=generator)
    direction = (direction / direction.norm()).to(hidden)
    gap = hidden - size * direction
    return policy.token_mean(squared_distance(gap, normalise), MASKS[mask])
