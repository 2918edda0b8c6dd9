"""DARE: drop entries at random, rescale, and add up."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.kernels.sparsify import Rescale, drop
from mergeforget.merge.methods import merge_method


@merge_method("dare_linear", source="DARE, arXiv:2311.03099; PEFT; mergekit", drops=drop)
def dare_linear(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    generator: NamedGenerator,
    l1_factors: Tensor | None = None,
    rescale: Rescale = "density",
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Keep each entry with probability ``density``, rescale, add up: ``sum_i w_i drop(x_i)``.

    The defaults are PEFT's; ``rescale=l1`` is mergekit.
    """
    dropped = drop(stack, density, generator, rescale=rescale, l1_factors=l1_factors)
    return weighted_sum(dropped, weights, normalize=normalize, scale=scale)
