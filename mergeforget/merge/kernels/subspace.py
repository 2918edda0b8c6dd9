"""Apply subspace methods to low-rank adapters with rank-sized matrices.

All deltas of a module are in the joint column space of their B and the joint row space of
their A. With orthonormal bases ``left`` (out, p) and ``right`` (q, in) of these,
``delta_i = left core_i right`` holds exactly, where ``core_i`` is (p, q). A method that only uses
singular vectors, products and norms gives the same result on the cores as on the dense deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mergeforget.merge.kernels.arrays import Tensor, library, to_dtype

Array = NDArray[Any]
NEGLIGIBLE = 1e-6  # singular values below this share of the largest are float32 noise


class Factors(Protocol):
    """The delta of one module, ``scaling * b @ a``."""

    @property
    def a(self) -> Array: ...
    @property
    def b(self) -> Array: ...
    @property
    def scaling(self) -> float: ...


class Cores(NamedTuple):
    """The deltas of one module in their joint subspace.

    Attributes:
        left: (out, p), orthonormal columns.
        cores: (n, p, q) float64.
        right: (q, in), orthonormal rows.
    """

    left: Array
    cores: Array
    right: Array


def cores_of(deltas: Sequence[Factors]) -> Cores:
    """Project deltas into their joint subspace, without loss of information."""
    b = np.concatenate([d.b for d in deltas], axis=1).astype(np.float64)
    a = np.concatenate([d.a for d in deltas]).astype(np.float64)
    left, right = np.linalg.qr(b)[0], np.linalg.qr(a.T)[0].T
    cores = [d.scaling * (left.T @ d.b) @ (d.a @ right.T) for d in deltas]
    return Cores(left, np.stack(cores), right)


def on_cores(merge: Callable[..., Tensor]) -> Callable[..., tuple[Array, Array]]:
    """Turn a merge method into a function of factors, for ``merge_method(factors=...)``.

    Args:
        merge: (stack (n, p, q), weights, **arguments) -> (p, q). It commutes with orthogonal maps
            of rows and columns.

    Returns:
        (deltas, weights, **arguments) -> (a, b) with the merged delta ``b @ a``.
    """

    def factors(deltas: Sequence[Factors], weights: Any, **arguments: Any) -> tuple[Array, Array]:
        subspace = cores_of(deltas)
        merged = merge(subspace.cores, weights, **arguments)
        return subspace.right, subspace.left @ np.asarray(merged)

    return factors


def svd(x: Tensor) -> tuple[Any, Any, Any]:
    """Return the thin SVD of (m, n) in float64, without zero singular values."""
    u, s, vt = library(x).linalg.svd(to_dtype(x, "float64"), full_matrices=False)
    rank = max(1, int((s > s[0] * NEGLIGIBLE).sum()))
    return u[:, :rank], s[:rank], vt[:rank]


def nearest_orthonormal(x: Tensor) -> Tensor:
    """Return the nearest matrix to (m, k) with orthonormal columns, by Frobenius norm."""
    u, _, vt = library(x).linalg.svd(x, full_matrices=False)
    nearest: Tensor = u @ vt
    return nearest
