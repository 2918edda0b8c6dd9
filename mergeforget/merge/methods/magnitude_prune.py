"""Trim, then add up."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.methods import merge_method


@merge_method(
    "magnitude_prune", source="PEFT 0.21.2, peft.utils.merge_utils.magnitude_prune", trims=True
)
def magnitude_prune(stack: Tensor, weights: Tensor, *, density: float) -> Tensor:
    """Keep the largest entries of each delta, then add up: ``sum_i w_i trim(x_i)``."""
    return weighted_sum(trim(stack, density), weights)
