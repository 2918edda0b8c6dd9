"""TSV-M: merge the leading singular vectors of all deltas after orthogonalisation."""

from __future__ import annotations

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, library, like
from mergeforget.merge.kernels.low_rank import nearest_orthonormal, on_cores, svd
from mergeforget.merge.methods import merge_method


def merged(stack: Tensor, weights: Tensor, *, share: float | None = None) -> Tensor:
    """Merge (n, out, in) to (out, in) in float64; see ``tsv_m``."""
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"share is {share}; it is a fraction of the rank and must be in (0, 1].")
    lib, n = library(stack), len(stack)
    lefts, values, rights = [], [], []
    for weight, delta in zip(weights, stack, strict=True):
        u, s, vt = svd(delta)
        if not s[0]:  # a zero delta has no directions
            continue
        kept = max(1, round(len(s) * (1 / n if share is None else share)))
        lefts.append(u[:, :kept])
        values.append(s[:kept] * float(weight))
        rights.append(vt[:kept])
    if not values:
        nothing: Tensor = stack[0] * 0.0
        return nothing
    left = nearest_orthonormal(lib.concatenate(lefts, 1))
    right = nearest_orthonormal(lib.concatenate(rights).T)
    found: Tensor = (left * lib.concatenate(values)) @ right.T
    return found


@merge_method(
    "tsv_m",
    source="Task Singular Vectors, arXiv:2412.00081, Algorithm 1 (TSV-Merge)",
    whole=True,
    factors=on_cores(merged),
)
def tsv_m(stack: Tensor, weights: Tensor, *, share: float | None = None) -> Tensor:
    """Keep the leading 1/n of each delta's singular vectors, decorrelate them, and add up.

    ``U S V^T`` with U and V the orthonormal matrices nearest to the stacked singular vectors of all
    deltas, and S their singular values times the weights.

    Args:
        share: Fraction of each delta's rank to keep; 1/n when omitted. In the paper, it is relative
            to the matrix dimension, which keeps all of a LoRA of rank r; here it is relative to the
            rank of the delta.
    """
    return like(merged(stack, weights, share=share), stack)
