"""NearSwap: keep small entries of a delta, and clip large ones."""

from __future__ import annotations

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method


@merge_method("nearswap", source="mergekit 0.1.5, NearSwap (alchemonaut/QuartetAnemoi-70B)")
def nearswap(stack: Tensor, weights: Tensor, *, t: float) -> Tensor:
    """``x * min(1, t / |x|)``: keep entries of the weighted change up to ``t``, clip the others.

    mergekit merges one model into the base; several deltas are added up first here.
    """
    if t < 0:
        raise UsageError(f"t is {t}; it is the largest change of an entry and must be >= 0.")
    change = weighted_sum(stack, weights)
    ones = change * 0 + t
    return change * (ones / abs(change).clip(1e-6)).clip(0, 1)
