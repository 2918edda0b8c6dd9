"""Representation misdirection for unlearning (RMU)."""

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
    normalise: Literal["none", "width"] = "none",
) -> Tensor:
    """Drive the forget set's hidden states to one random direction: ``mean ||h - c u||^2``.

    ``u`` is a fixed random unit vector. Known failure: the model generates noise, which is
    easy to recognise, and the knowledge returns after a few steps of fine-tuning.

    Args:
        layer: Counted from 0; the hidden states after it are read.
        coefficient: c, in units of the hidden states.
        mask: Counted positions. The published code counts every position ("all"),
            OpenUnlearning the answer.
        normalise: "width" divides by the width, as the published code does (a mean squared
            error). Set it in ``rmu_retain`` as well, or the balance of the two changes.
    """
    return steered(policy, layer, coefficient, seed, mask, normalise)
