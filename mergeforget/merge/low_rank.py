"""Arithmetic on the low-rank deltas of one module, from rank-sized matrices where possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import LowRankDelta
from mergeforget.merge.kernels.thresholds import Source

Array = NDArray[Any]
DISTINCT = 1e-4  # share of the energy above which float32 gives an error to 1 %


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
