"""Trim the deltas and add them up."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.kernels.thresholds import Cuts
from mergeforget.merge.methods import merge_method


@merge_method("magnitude_prune", source="PEFT 0.21.2, peft.utils.merge_utils.magnitude_prune")
def magnitude_prune(
    stack: Tensor, weights: Tensor, *, density: float, cuts: Cuts | None = None
) -> Tensor:
    """Keep the largest entries of each delta, then add up: ``sum_i w_i trim(x_i)``."""
    return weighted_sum(trim(stack, density, cuts), weights)
