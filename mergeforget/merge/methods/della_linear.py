"""DELLA without sign election: drop entries at random by magnitude, and add up."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.kernels.sparsify import Rescale, magprune
from mergeforget.merge.methods import merge_method


@merge_method("della_linear", source="DELLA-Merging, arXiv:2406.11617; mergekit", drops=magprune)
def della_linear(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    generator: NamedGenerator,
    l1_factors: Tensor | None = None,
    epsilon: float = 0.15,
    rescale: Rescale = "l1",
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Drop entries at random by their rank in the row, rescale, add up."""
    kept = magprune(stack, density, epsilon, generator, rescale=rescale, l1_factors=l1_factors)
    return weighted_sum(kept, weights, normalize=normalize, scale=scale)
