"""Arithmetic on the low-rank deltas of one module, from rank-sized matrices where possible.

Norms, inner products and errors of sums follow from Gram matrices of the factors. For subspace
methods, all deltas of a module are in the joint column space of their B and the joint row space
of their A. With orthonormal bases ``left`` (out, p) and ``right`` (q, in) of these,
``delta_i = left core_i right`` holds exactly, where ``core_i`` is (p, q). A method that only uses
singular vectors, products and norms gives the same result on the cores as on the dense deltas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import LowRankDelta
from mergeforget.merge.kernels.arrays import Tensor, library, to_dtype
from mergeforget.merge.kernels.thresholds import Source

Array = NDArray[Any]
NEGLIGIBLE = 1e-6  # singular values below this share of the largest are float32 noise
DISTINCT = 1e-4  # share of the energy above which float32 gives an error to 1 %


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
    """Return the nearest matrix to (m, k) with orthonormal columns, by Frobenius norm.

    Dependent columns, such as those of equal inputs, cannot become orthonormal without directions
    that none of them has; they stay within their span.
    """
    u, _, vt = svd(x)
    nearest: Tensor = u @ vt
    return nearest


def stacked_sum(deltas: Sequence[LowRankDelta], weights: Array) -> LowRankDelta:
    """Return ``sum_i w_i delta_i`` exactly, as stacked factors like PEFT's ``cat``."""
    dtype = deltas[0].a.dtype
    scaled = [
        d.a * dtype.type(w) * dtype.type(d.scaling) for d, w in zip(deltas, weights, strict=True)
    ]
    return LowRankDelta(np.concatenate(scaled), np.concatenate([d.b for d in deltas], axis=1), 1.0)


def products(deltas: Sequence[LowRankDelta]) -> Source:
    """Return a source of the dense deltas of one module, computed block by block."""

    def rows(part: slice, across: slice = slice(None)) -> Array:
        factors = [(d.b[part], d.a[:, across]) for d in deltas]
        stack = np.empty(
            (len(deltas), len(factors[0][0]), factors[0][1].shape[1]), factors[0][0].dtype
        )
        for product, (b, a), d in zip(stack, factors, deltas, strict=True):
            np.matmul(b, a, out=product)
            product *= d.scaling
        return stack

    def sample(down: int, across: int) -> Array:
        return rows(slice(None, None, down), slice(None, None, across))

    return Source(len(deltas), deltas[0].shape, rows, sample)


def gram(deltas: Sequence[LowRankDelta]) -> Array:
    """Return the inner products of the deltas, (n, n), from rank-sized matrices."""
    return np.array([[one.inner(other) for other in deltas] for one in deltas])


def precise(delta: LowRankDelta, dtype: str) -> LowRankDelta:
    """Convert the factors of a delta to ``float32`` or ``float64``."""
    a, b = delta.a.astype(dtype, copy=False), delta.b.astype(dtype, copy=False)
    return LowRankDelta(a, b, delta.scaling)


def cross_terms(
    deltas: Sequence[LowRankDelta], weights: Array, of_a: Array, of_b: Array
) -> tuple[float, float]:
    """Return ``||sum_i w_i delta_i||^2`` and the squared distance of the merged factors from it.

    ``(sum_i of_b_i B_i) (sum_j of_a_j A_j)`` and the exact sum are sums over pairs (i, j), so
    both follow from the inner products ``<B_i A_j, B_k A_l>`` of rank-sized matrices.
    """
    exact = np.diag(weights * [d.scaling for d in deltas])
    difference = np.outer(of_b, of_a) - exact
    a = np.concatenate([d.a for d in deltas])
    b = np.concatenate([d.b for d in deltas], axis=1)

    def measured(a: Array, b: Array) -> tuple[float, float]:
        inner = _inner_products(a, b, len(deltas))
        energy, error = (np.einsum("ij,kl,ikjl->", x, x, inner) for x in (exact, difference))
        return float(energy), max(0.0, float(error))

    energy, error = measured(a, b)
    if difference.any() and not DISTINCT * energy < error < math.inf:  # rounded away, or overflown
        energy, error = measured(a.astype(np.float64), b.astype(np.float64))
    return energy, error


def _inner_products(a: Array, b: Array, n: int) -> Array:
    """Return ``<B_i A_j, B_k A_l>`` at [i, k, j, l], from stacked A (n r, in) and B (out, n r)."""
    rank = len(a) // n

    def blocks(gram: Array) -> Array:
        """Reshape (n r, n r) to one block per pair, (n n, r r)."""
        by_pair = gram.astype(np.float64).reshape(n, rank, n, rank).transpose(0, 2, 1, 3)
        return by_pair.reshape(n * n, rank * rank)

    with np.errstate(over="ignore", invalid="ignore"):  # the caller repeats it in float64
        return (blocks(b.T @ b) @ blocks(a @ a.T).T).reshape(n, n, n, n)


def squared_norm(x: Array) -> float:
    """Return the sum of the squares of an array, added in float64."""
    return float(np.sum(np.square(x, dtype=np.float64)))
