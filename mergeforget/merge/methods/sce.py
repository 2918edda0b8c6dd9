"""SCE: select entries by variance, calculate weights, erase minority signs."""

from __future__ import annotations

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, column, library
from mergeforget.merge.kernels.sign_election import elect, total
from mergeforget.merge.kernels.thresholds import find_cuts
from mergeforget.merge.methods import merge_method


@merge_method("sce", source="FuseChat 2.0 (SCE), arXiv:2408.07990; mergekit", whole=True)
def sce(stack: Tensor, weights: Tensor, *, select_topk: float = 1.0) -> Tensor:
    """Select the entries of largest variance, weight by energy, drop entries of minority sign.

    ``sum_i q_i x_i m_i / sum_i q_i m_i`` with ``q_i`` the share of the mean square of ``x_i``.
    ``select_topk`` is the share kept of the entries whose variance over the inputs is not zero. The
    weights multiply the inputs first; mergekit has none here.
    """
    if not 0 < select_topk <= 1:
        raise UsageError(f"select_topk is {select_topk}; it is a share and must be in (0, 1].")
    stack = stack * column(weights, stack)
    if select_topk < 1:
        stack = stack * _selected(stack, select_topk)
    squares = (stack.reshape(len(stack), -1) ** 2).mean(-1)
    energy = float(squares.sum())
    shares = squares / energy if energy >= 1e-6 else squares * 0 + 1 / len(stack)
    agree = elect(stack)
    kept = column(shares, stack) * agree
    return total(stack * kept) / total(kept).clip(1e-6)


def _selected(stack: Tensor, select_topk: float) -> Tensor:
    """Mask, (*shape), of the entries that vary most over the inputs."""
    lib = library(stack)
    options = {"ddof": 1} if isinstance(stack, np.ndarray) else {"unbiased": True}
    variance: Tensor = stack.var(0, **options).reshape(-1)
    count = int(int(lib.count_nonzero(variance)) * select_topk)
    if count == 0:
        return (variance < 0).reshape(stack.shape[1:])
    cut = find_cuts(variance, [count])[0]
    mask: Tensor = variance > cut.value
    (at_cut,) = lib.where(variance == cut.value)
    mask[at_cut if cut.last is None else at_cut[at_cut <= cut.last]] = True
    return mask.reshape(stack.shape[1:])
