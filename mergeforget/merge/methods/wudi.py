"""WUDI: the delta with the least interference with the row space of every input."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor, library, like, to_dtype
from mergeforget.merge.kernels.low_rank import on_cores
from mergeforget.merge.methods import merge_method

CUTOFF = 1e-10  # relative to the largest eigenvalue; directions outside all row spaces stay zero


def merged(stack: Tensor, weights: Tensor, *, scale: float = 1.0) -> Tensor:
    """Merge (n, out, in) to (out, in) in float64; see ``wudi``."""
    lib = library(stack)
    targets = to_dtype(stack, "float64") * like(weights, to_dtype(stack, "float64"))[:, None, None]
    wide = to_dtype(stack, "float64")
    norms = (wide * wide).sum((1, 2))
    shares = 1 / (norms + (norms == 0))  # (n,)
    grams = lib.einsum("noi,noj->nij", wide, wide) * shares[:, None, None]
    right = lib.einsum("noi,nij->oj", targets, grams)
    found: Tensor = right @ lib.linalg.pinv(grams.sum(0), CUTOFF, hermitian=True)
    return scale * found


@merge_method(
    "wudi",
    source="Whoever Started the Interference Should End It, arXiv:2503.08099, eq. 13 (WUDI)",
    whole=True,
    factors=on_cores(merged),
)
def wudi(stack: Tensor, weights: Tensor, *, scale: float = 1.0) -> Tensor:
    """Minimise ``sum_i ||(m - w_i x_i) x_i^T||^2 / ||x_i||^2`` over the merged delta m.

    The paper runs Adam from the sum of the deltas; this is the exact minimiser,
    ``(sum_i w_i x_i G_i) (sum_i G_i)^+`` with ``G_i = x_i^T x_i / ||x_i||^2``.
    """
    return like(merged(stack, weights, scale=scale), stack)
