"""RAM: average each entry over the inputs that changed it."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor, column
from mergeforget.merge.kernels.sign_election import total
from mergeforget.merge.methods import merge_method


@merge_method("ram", source="Reinforced Agent Merging, mergekit 0.1.5")
def ram(stack: Tensor, weights: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Average, at each position, the weighted entries larger than ``epsilon``; keep a single one.

    A plain mean would split_measured an entry that only one of two models changed.
    """
    moved = abs(stack) > epsilon
    count = total(moved * column(weights * 0 + 1, stack))
    return total(stack * column(weights, stack) * moved) / count.clip(1)
