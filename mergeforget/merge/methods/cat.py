"""Exact sum of the deltas, with the sum of the ranks."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method


@merge_method("cat", source="PEFT 0.21.2, LoraModel.add_weighted_adapter", base="either")
def cat(stack: Tensor, weights: Tensor) -> Tensor:
    """Add up the weighted deltas exactly, as adapters of the summed rank: ``sum_i w_i x_i``.

    The stacked factors represent the sum exactly, without truncation; ``linear`` in delta space
    truncates the same delta to a smaller rank.
    """
    return weighted_sum(stack, weights)
