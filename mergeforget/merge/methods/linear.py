"""The weighted sum."""

from __future__ import annotations

from mergeforget.merge.methods import merge_method
from mergeforget.merge.ops import Tensor, weighted_sum


@merge_method("linear", source="Editing Models with Task Arithmetic, arXiv:2212.04089; PEFT")
def linear(stack: Tensor, weights: Tensor) -> Tensor:
    """Add up the weighted deltas: ``sum_i w_i x_i``.

    In factor space this is PEFT's ``linear``, whose product has cross terms between the adapters;
    in delta space it is PEFT's ``svd``.
    """
    return weighted_sum(stack, weights)
