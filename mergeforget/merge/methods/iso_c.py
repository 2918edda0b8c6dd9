"""Iso-C: give the sum of the deltas equal singular values."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor, like
from mergeforget.merge.kernels.low_rank import on_cores, svd
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method


def merged(stack: Tensor, weights: Tensor, *, scale: float = 1.0) -> Tensor:
    """Merge (n, out, in) to (out, in) in float64; see ``iso_c``."""
    u, s, vt = svd(weighted_sum(stack, weights))
    found: Tensor = scale * float(s.mean()) * (u @ vt)
    return found


@merge_method(
    "iso_c",
    source="No Task Left Behind, arXiv:2502.04959, Algorithm 1 (Iso-C)",
    whole=True,
    factors=on_cores(merged),
)
def iso_c(stack: Tensor, weights: Tensor, *, scale: float = 1.0) -> Tensor:
    """Replace every singular value of ``sum_i w_i x_i`` by their mean, so no direction dominates.

    The mean is over the nonzero singular values: the sum of LoRA deltas has a low rank, whereas
    the matrices of the paper have full rank.
    """
    return like(merged(stack, weights, scale=scale), stack)
