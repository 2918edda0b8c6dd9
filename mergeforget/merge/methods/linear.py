"""Weighted sum of the deltas."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import scaled, weighted_sum
from mergeforget.merge.methods import merge_method


@merge_method(
    "linear",
    source="Editing Models with Task Arithmetic, arXiv:2212.04089; PEFT; mergekit",
    coefficients=scaled,
    base="either",
)
def linear(
    stack: Tensor, weights: Tensor, *, normalize: bool = False, scale: float = 1.0
) -> Tensor:
    """Weighted sum ``scale * sum_i w_i x_i``; ``normalize`` divides by ``sum_i w_i``.

    In factor space, this is PEFT's ``linear``, whose product has cross terms between the adapters;
    in delta space it is PEFT's ``svd`` and mergekit's ``task_arithmetic``. On models without a
    base and with ``normalize`` it is mergekit's ``linear``.
    """
    return weighted_sum(stack, weights, normalize=normalize, scale=scale)
