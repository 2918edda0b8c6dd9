"""Drop at random and rescale, elect a sign, average what agrees."""

from __future__ import annotations

from mergeforget.merge.chance import Chance
from mergeforget.merge.methods import merge_method
from mergeforget.merge.ops import Rescale, Sign, Tensor, disjoint_mean, drop, elect


@merge_method("dare_ties", source="DARE, arXiv:2311.03099, with TIES's election")
def dare_ties(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    chance: Chance,
    sign: Sign = "total",
    rescale: Rescale = "density",
) -> Tensor:
    """Keep entries at random and rescale, elect a sign at each place, average what has it."""
    dropped = drop(stack, density, chance, rescale=rescale)
    return disjoint_mean(dropped, weights, elect(dropped, sign))
