"""Consensus merging: keep the entries that several tasks need."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor, column
from mergeforget.merge.kernels.sign_election import total, weighted_sum
from mergeforget.merge.methods import merge_method


@merge_method("consensus", source="TALL-masks and Consensus Merging, arXiv:2405.07813")
def consensus(stack: Tensor, weights: Tensor, *, ratio: float = 0.4, agreeing: int = 2) -> Tensor:
    """Add up the weighted deltas where at least ``agreeing`` of them matter; zero elsewhere.

    Delta i matters where ``|x_i| >= ratio * |sum_j x_j - x_i|``. Entries that only one task needs
    (selfish) or none (catastrophic) are dropped.
    """
    rest = abs(total(stack) - stack)
    matters = total((abs(stack) >= ratio * rest) * column(weights * 0 + 1, stack))
    return weighted_sum(stack, weights) * (matters >= agreeing)
