"""Iso-CTS: equal singular values over common and task-specific directions."""

from __future__ import annotations

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, library, like
from mergeforget.merge.kernels.low_rank import NEGLIGIBLE, nearest_orthonormal, on_cores, svd
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method

ROUNDING = 1e-9  # (1 - 0.8) * 10 / 2 is slightly less than 1


def merged(stack: Tensor, weights: Tensor, *, common: float = 0.8, scale: float = 1.0) -> Tensor:
    """Merge (n, out, in) to (out, in) in float64; see ``iso_cts``."""
    if not 0 <= common <= 1:
        raise UsageError(f"common is {common}; it is a fraction of the rank and must be in [0, 1].")
    lib, n = library(stack), len(stack)
    u, s, vt = svd(weighted_sum(stack, weights))
    specific = int((1 - common) * len(s) / n + ROUNDING)  # directions of each task
    kept = len(s) - n * specific
    lefts, values, rights = [u[:, :kept]], [s[:kept]], [vt[:kept]]
    for weight, delta in zip(weights, stack, strict=True):
        if not specific:
            break
        rest = float(weight) * like(delta, u)
        v, t, wt = svd(rest - lefts[0] @ (lefts[0].T @ rest))
        if t[0] <= s[0] * NEGLIGIBLE:  # nothing is left but rounding
            continue
        lefts.append(v[:, :specific])
        values.append(t[:specific])
        rights.append(wt[:specific])
    left = nearest_orthonormal(lib.concatenate(lefts, 1))
    right = nearest_orthonormal(lib.concatenate(rights).T)
    found: Tensor = scale * float(lib.concatenate(values).mean()) * (left @ right.T)
    return found


@merge_method(
    "iso_cts",
    source="No Task Left Behind, arXiv:2502.04959, Algorithm 2 (Iso-CTS)",
    whole=True,
    factors=on_cores(merged),
)
def iso_cts(stack: Tensor, weights: Tensor, *, common: float = 0.8, scale: float = 1.0) -> Tensor:
    """Iso-C that replaces the weakest common directions by the strongest of each single task.

    Args:
        common: Fraction of the directions taken from the sum of the deltas; the others come, in
            equal parts, from each delta without its component in the common directions.
        scale: Multiplier of the result.
    """
    return like(merged(stack, weights, common=common, scale=scale), stack)
