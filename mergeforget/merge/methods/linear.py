"""The weighted sum."""

from __future__ import annotations

from typing import Any

from mergeforget.merge.methods import merge_method
from mergeforget.merge.ops import Tensor, weighted_sum


def as_given(gram: Any, weights: Tensor) -> Tensor:
    """The weights themselves."""
    return weights


@merge_method(
    "linear",
    source="Editing Models with Task Arithmetic, arXiv:2212.04089; PEFT",
    coefficients=as_given,
    base="either",
)
def linear(stack: Tensor, weights: Tensor) -> Tensor:
    """Add up the weighted deltas: ``sum_i w_i x_i``.

    In factor space this is PEFT's ``linear``, whose product has cross terms between the adapters;
    in delta space it is PEFT's ``svd``.
    """
    return weighted_sum(stack, weights)
