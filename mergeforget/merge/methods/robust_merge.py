"""RobustMerge: prune the factors, and rescale each rank-one direction by its pruning loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergeforget.errors import InputError, UsageError
from mergeforget.merge.kernels.arrays import Tensor, library, like, to_dtype
from mergeforget.merge.kernels.low_rank import Factors, svd
from mergeforget.merge.kernels.sign_election import total
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.methods import merge_method


def factors(
    deltas: Sequence[Factors],
    weights: Any,
    *,
    density: float = 0.2,
    raised: float = 0.8,
    scale: float = 1.0,
) -> tuple[Any, Any]:
    """Return (a, b) of the merged delta; see ``robust_merge``."""
    ranks = {d.a.shape[0] for d in deltas}
    if len(ranks) > 1:
        raise InputError(
            f"robust_merge merges A and B separately, so the ranks must be equal, not "
            f"{sorted(ranks)}. Truncate the adapters to one rank with `merge --adapter X --rank r`."
        )
    scaled = np.asarray(weights) * [d.scaling for d in deltas]
    a, b = np.stack([d.a for d in deltas]), np.stack([d.b for d in deltas])
    return _robust(a, b, scaled, density, raised, scale)


def _robust(
    a: Any, b: Any, weights: Any, density: float, raised: float, scale: float
) -> tuple[Any, Any]:
    """Merge (n, r, in) and (n, out, r) with weights (n,) of the products."""
    if not 0 <= raised < 1:
        raise UsageError(f"raised is {raised}; it is a fraction of the directions, in [0, 1).")
    kept_a, kept_b = trim(a, density), trim(b, density)
    ratios = library(a).stack([_ratios(x, y, raised) for x, y in zip(a, kept_a, strict=True)])
    shares = ratios / total(ratios)  # (n, r), over the adapters
    roots = abs(weights) ** 0.5
    signed = roots * library(weights).sign(weights) * scale
    merged_a = total(kept_a * like(signed, a)[:, None, None])
    merged_b = total(kept_b * shares[:, None, :] * like(roots, b)[:, None, None])
    return merged_a, merged_b


def _ratios(whole: Any, kept: Any, raised: float) -> Any:
    """Return the ratio of the L1 norms of each row before and after pruning, (r,).

    A row that was pruned completely gets the largest ratio. The ``raised`` fraction with
    the smallest ratios is raised to the next larger one, so only directions with a large loss
    are distinguished.
    """
    lib = library(whole)
    before, after = abs(whole).sum(-1), abs(kept).sum(-1)
    gone = after == 0
    ratios = before / (after + gone)
    ratios = lib.where(gone, lib.amax(ratios * ~gone) + (ratios == ratios) * 0, ratios)
    ratios = ratios + (ratios == 0)  # all rows are pruned or zero
    rank = len(ratios)
    ordered = sorted(float(x) for x in ratios)
    return ratios.clip(ordered[min(rank - 1, int(rank * raised))])


def _signs(vt: Any) -> Any:
    """Return the sign of each row's sum of cubes, (r,).

    An SVD determines pairs of singular vectors up to their sign, which differs between libraries.
    The result depends on it, since the factors of different adapters are multiplied.
    """
    cubes = (vt**3).sum(-1)
    return library(vt).sign(cubes) + (cubes == 0)


@merge_method(
    "robust_merge",
    source="RobustMerge, arXiv:2502.17159, section 4",
    whole=True,
    factors=factors,
)
def robust_merge(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float = 0.2,
    raised: float = 0.8,
    scale: float = 1.0,
) -> Tensor:
    """Trim A and B of each adapter, scale the columns of B by the loss of A's rows, and add up.

    With ``s_i = |A_i| / |trim(A_i)|`` by rows (L1 norms), normalised over the adapters, the result
    is ``(sum_i w_i trim(B_i) s_i) (sum_i w_i trim(A_i))``. Small singular directions lose most of
    their entries to a trim and would be outweighed by large ones; the scaling protects them.

    The published code multiplies each factor by 2, which is ``scale=4`` here. A dense delta is
    split into balanced factors by an SVD first, with the sum of cubes of each right singular
    vector positive.

    Args:
        density: Fraction of the entries kept in each factor.
        raised: Fraction of the directions whose scaling is raised to the next larger one.
        scale: Multiplier of the result.
    """
    lib, wide = library(stack), to_dtype(stack, "float64")
    parts = [lib.linalg.svd(x, full_matrices=False) for x in wide]
    rank = max(len(svd(x)[1]) for x in wide)
    signs = [_signs(vt) for _, _, vt in parts]
    a = lib.stack(
        [(vt * (g * s**0.5)[:, None])[:rank] for g, (_, s, vt) in zip(signs, parts, strict=True)]
    )
    b = lib.stack([(u * (g * s**0.5))[:, :rank] for g, (u, s, _) in zip(signs, parts, strict=True)])
    merged_a, merged_b = _robust(a, b, like(weights, wide), density, raised, scale)
    return like(merged_b @ merged_a, stack)
