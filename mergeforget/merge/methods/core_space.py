"""Core Space: merge in the joint subspace of the factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergeforget.merge.kernels.arrays import Tensor, library, like, to_dtype
from mergeforget.merge.kernels.low_rank import Factors, cores_of, svd
from mergeforget.merge.kernels.sign_election import Divide, Sign, consensus
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.methods import merge_method


def _merged(cores: Any, weights: Any, density: float, sign: Sign, divide: Divide) -> Any:
    return consensus(trim(cores, density), weights, sign=sign, divide=divide)


def factors(
    deltas: Sequence[Factors],
    weights: Any,
    *,
    density: float,
    sign: Sign = "total",
    divide: Divide = "count",
) -> tuple[Any, Any]:
    """Return (a, b) of the merged delta from rank-sized matrices; see ``core_space``."""
    found = cores_of(deltas)
    left, _, _ = svd(np.concatenate(list(found.cores), 1))  # principal axes of the joint space
    right = svd(np.concatenate(list(found.cores)))[2].T
    cores = np.stack([left.T @ core @ right for core in found.cores])
    return right.T @ found.right, found.left @ left @ _merged(cores, weights, density, sign, divide)


@merge_method(
    "core_space",
    source="Core Space, arXiv:2509.17786, section 3 (with TIES)",
    whole=True,
    factors=factors,
)
def core_space(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    sign: Sign = "total",
    divide: Divide = "count",
) -> Tensor:
    """Project the deltas onto their joint column and row spaces, merge the cores by TIES.

    The projection is lossless, and the cores have the size of the summed ranks. The bases are
    the singular vectors of the horizontally and vertically stacked deltas.
    """
    lib, wide = library(stack), to_dtype(stack, "float64")
    left = svd(lib.concatenate(list(wide), 1))[0]
    right = svd(lib.concatenate(list(wide)))[2].T
    cores = lib.stack([left.T @ x @ right for x in wide])
    return like(left @ _merged(cores, weights, density, sign, divide) @ right.T, stack)
