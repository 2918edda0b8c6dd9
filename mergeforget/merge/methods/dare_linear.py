"""Drop at random and rescale, then add up."""

from __future__ import annotations

from mergeforget.merge.chance import Chance
from mergeforget.merge.methods import merge_method
from mergeforget.merge.ops import Rescale, Tensor, drop, weighted_sum


@merge_method("dare_linear", source="DARE, arXiv:2311.03099")
def dare_linear(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    chance: Chance,
    rescale: Rescale = "density",
) -> Tensor:
    """Keep each entry with probability ``density``, rescale, add up: ``sum_i w_i drop(x_i)``."""
    return weighted_sum(drop(stack, density, chance, rescale=rescale), weights)
