"""DELLA: drop entries at random by magnitude, elect a sign, average the entries that agree."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sign_election import Divide, Sign, Vote, consensus
from mergeforget.merge.kernels.sparsify import Rescale, magprune
from mergeforget.merge.methods import merge_method


@merge_method("della", source="DELLA-Merging, arXiv:2406.11617; mergekit", drops=magprune)
def della(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    generator: NamedGenerator,
    l1_factors: Tensor | None = None,
    epsilon: float = 0.15,
    rescale: Rescale = "l1",
    sign: Sign = "total",
    vote: Vote = "weighted",
    divide: Divide = "weights",
    scale: float = 1.0,
) -> Tensor:
    """Drop entries at random by rank in the row, rescale, elect a sign, average those that agree.

    The defaults are mergekit's; the paper also keeps with ``density -+ epsilon``, but rescales each
    entry by its own probability.
    """
    kept = magprune(stack, density, epsilon, generator, rescale=rescale, l1_factors=l1_factors)
    return consensus(kept, weights, sign=sign, vote=vote, divide=divide, scale=scale)
