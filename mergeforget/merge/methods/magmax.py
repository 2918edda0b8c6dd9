"""MagMax: take each entry from the delta with the largest magnitude."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor, column
from mergeforget.merge.methods import merge_method


@merge_method("magmax", source="MagMax, arXiv:2407.06322, section 4")
def magmax(stack: Tensor, weights: Tensor, *, scale: float = 1.0) -> Tensor:
    """Keep, at each position, the weighted entry of largest magnitude, the first in a tie."""
    weighted = stack * column(weights, stack)
    found: Tensor = weighted[0] + 0.0
    for entries in weighted[1:]:
        larger = abs(entries) > abs(found)
        found = entries * larger + found * ~larger
    return found if scale == 1 else found * scale
