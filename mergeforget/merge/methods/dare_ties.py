"""DARE with TIES: drop entries at random, rescale, elect a sign, average those that agree."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sign_election import Divide, Sign, Vote, consensus
from mergeforget.merge.kernels.sparsify import Rescale, drop
from mergeforget.merge.methods import merge_method


@merge_method(
    "dare_ties", source="DARE, arXiv:2311.03099, with TIES's election; PEFT; mergekit", drops=drop
)
def dare_ties(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    generator: NamedGenerator,
    l1_factors: Tensor | None = None,
    rescale: Rescale = "density",
    sign: Sign = "total",
    vote: Vote = "unweighted",
    divide: Divide = "count",
    scale: float = 1.0,
) -> Tensor:
    """Keep entries at random and rescale, elect a sign at each position, average those that agree.

    The defaults are PEFT's; ``rescale=l1``, ``vote=weighted``, ``divide=none`` is mergekit.
    """
    dropped = drop(stack, density, generator, rescale=rescale, l1_factors=l1_factors)
    return consensus(dropped, weights, sign=sign, vote=vote, divide=divide, scale=scale)
