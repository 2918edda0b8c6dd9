"""KnOTS: merge in the joint singular basis of the deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergeforget.merge.kernels.arrays import Tensor, library, like
from mergeforget.merge.kernels.low_rank import Factors, cores_of, svd
from mergeforget.merge.kernels.sign_election import Divide, consensus
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.methods import merge_method


def _aligned(left: Any, parts: Any, weights: Any, density: float, divide: Divide) -> Any:
    """Merge the right factors, (n, k, in), in the basis ``left``, (out, k), by TIES."""
    return consensus(trim(parts, density), weights, divide=divide)


def factors(
    deltas: Sequence[Factors], weights: Any, *, density: float, divide: Divide = "count"
) -> tuple[Any, Any]:
    """Return (a, b) of the merged delta from rank-sized matrices; see ``knots``."""
    found = cores_of(deltas)
    u, _, _ = svd(np.concatenate(list(found.cores), 1))  # (p, k) of [x_1 ... x_n]
    left = found.left @ u
    parts = np.stack([u.T @ core @ found.right for core in found.cores])  # (n, k, in)
    return _aligned(left, parts, weights, density, divide), left


@merge_method(
    "knots",
    source="KnOTS, arXiv:2410.19735, section 4 (KnOTS-TIES)",
    whole=True,
    factors=factors,
)
def knots(stack: Tensor, weights: Tensor, *, density: float, divide: Divide = "count") -> Tensor:
    """Align the deltas by one SVD of ``[x_1 ... x_n] = U S [V_1 ... V_n]``, merge the V_i by TIES.

    The merged delta is ``U`` times the merge of ``S V_i``. LoRA deltas that share no entries in
    the weights are comparable in this basis.
    """
    lib = library(stack)
    u, _, _ = svd(lib.concatenate(list(stack), 1))
    parts = lib.stack([u.T @ like(x, u) for x in stack])
    return like(u @ _aligned(u, parts, weights, density, divide), stack)
