"""Fisher merging: mean of the deltas, weighted by the importance of each entry."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor, column, like
from mergeforget.merge.kernels.sign_election import total
from mergeforget.merge.methods import merge_method


@merge_method("fisher", source="Fisher-weighted averaging, arXiv:2111.09832, eq. 4", whole=True)
def fisher(stack: Tensor, weights: Tensor, *, importance: Tensor, floor: float = 1e-6) -> Tensor:
    """``sum_i w_i F_i x_i / sum_i w_i F_i`` with F_i the diagonal Fisher information.

    Args:
        importance: F_i, (n, out, in): mean squared gradient of the loss of model i on its own
            rows. The engine measures it on the files of ``--data``.
        floor: Added to F_i, as a fraction of its mean, so that entries without information are
            averaged.
    """
    known = like(importance, stack)
    shares = (known + floor * float(known.mean())) * column(weights, stack)
    summed = total(shares)
    merged: Tensor = total(shares * stack) / (summed + (summed == 0))
    return merged
