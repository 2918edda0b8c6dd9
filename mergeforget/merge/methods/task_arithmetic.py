"""Weighted sum of deltas, under mergekit's name."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import scaled, weighted_sum
from mergeforget.merge.methods import merge_method


@merge_method(
    "task_arithmetic",
    source="Editing Models with Task Arithmetic, arXiv:2212.04089; mergekit",
    coefficients=scaled,
)
def task_arithmetic(
    stack: Tensor, weights: Tensor, *, normalize: bool = False, scale: float = 1.0
) -> Tensor:
    """Add up the weighted deltas: ``scale * sum_i w_i x_i``; a negative weight subtracts one."""
    return weighted_sum(stack, weights, normalize=normalize, scale=scale)
