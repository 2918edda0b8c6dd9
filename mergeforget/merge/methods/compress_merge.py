"""Compress the deltas into shared bases of the wanted rank, then merge the small cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, library, like, to_dtype
from mergeforget.merge.kernels.low_rank import Factors, cores_of
from mergeforget.merge.kernels.sign_election import consensus
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.methods import merge_method

SWEEPS, TOLERANCE = 200, 1e-6  # maximum alternations; smallest change of the relative error


def shared_bases(stack: Any, rank: int) -> tuple[Any, Any]:
    """Return orthonormal (out, r) and (in, r) that maximise ``sum_i ||U^T x_i V||^2``.

    Alternates between the two (a Tucker decomposition by higher-order orthogonal iteration) until
    the relative error of the reconstruction changes by less than ``TOLERANCE``.
    """
    lib = library(stack)
    rank = min(rank, *stack.shape[1:])
    whole, last = float((stack * stack).sum()) or 1.0, -1.0
    right = lib.linalg.svd(lib.concatenate(list(stack)), full_matrices=False)[2][:rank].T
    for _ in range(SWEEPS):
        left = lib.linalg.svd(lib.concatenate(list(stack @ right), 1), full_matrices=False)[0]
        left = left[:, :rank]
        projected = lib.concatenate([left.T @ x for x in stack])
        _, kept, right = lib.linalg.svd(projected, full_matrices=False)
        right = right[:rank].T
        error = max(0.0, 1 - float((kept[:rank] ** 2).sum()) / whole) ** 0.5
        if abs(error - last) < TOLERANCE:
            break
        last = error
    return left, right


def _compressed(
    stack: Any, weights: Any, density: float, size: int, beta: float
) -> tuple[Any, Any, Any]:
    if size < 1:
        raise UsageError(f"size is {size}; it is the rank of the shared bases, at least 1.")
    if not 0 <= beta <= 1:
        raise UsageError(f"beta is {beta}; it must be in [0, 1].")
    norms = (stack * stack).sum((1, 2)) ** 0.5
    balance = beta + (1 - beta) * norms.mean() / (norms + (norms == 0))
    left, right = shared_bases(stack * balance[:, None, None], size)
    cores = library(stack).stack([left.T @ x @ right for x in stack])
    return left, consensus(trim(cores, density), weights), right


def factors(
    deltas: Sequence[Factors],
    weights: Any,
    *,
    density: float = 0.25,
    size: int = 0,
    beta: float = 0.25,
) -> tuple[Any, Any]:
    """Return (a, b) of the merged delta from rank-sized matrices; see ``compress_merge``."""
    found = cores_of(deltas)
    rank = size or max(len(d.a) for d in deltas)
    left, core, right = _compressed(found.cores, np.asarray(weights), density, rank, beta)
    return right.T @ found.right, found.left @ left @ core


@merge_method(
    "compress_merge",
    source="Compress-then-Merge, arXiv:2606.03723, with TIES on the cores",
    whole=True,
    factors=factors,
)
def compress_merge(
    stack: Tensor, weights: Tensor, *, density: float = 0.25, size: int = 0, beta: float = 0.25
) -> Tensor:
    """Project all deltas onto one pair of bases of rank ``size``, merge the (size, size) cores.

    The result has that rank by construction, so the merge needs no truncation. The bases preserve
    as much of the deltas as possible; the cores are merged by TIES.

    Args:
        density: Fraction of each core's entries that TIES keeps.
        size: Rank of the bases; 0 is the largest rank of the adapters, or the full rank of dense
        deltas.
        beta: Influence of the norms on the bases: 1 fits them to the deltas, 0 to
            deltas scaled to equal norms. The cores are always those of the unscaled deltas.
    """
    wide = to_dtype(stack, "float64")
    rank = size or min(stack.shape[1:])
    left, core, right = _compressed(wide, weights, density, rank, beta)
    return like(left @ core @ right.T, stack)
