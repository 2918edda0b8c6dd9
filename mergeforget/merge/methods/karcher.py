"""Karcher mean on the sphere."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import combine, fractions
from mergeforget.merge.methods import merge_method


def coefficients(gram: Any, weights: Tensor, *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Return the factors of the inputs.

    Every direction is in the span of the inputs, so it is represented by its coefficients
    over the unit vectors; lengths and angles follow from the inner products.
    """
    products = gram()
    lengths = np.sqrt(np.maximum(np.diag(products), 0.0))
    nonzero = lengths > 1e-12
    shares = np.asarray(weights, np.float64) * nonzero
    if not shares.any():
        return np.zeros(len(products))
    scale = np.where(nonzero, lengths, 1.0)
    cosines = products / scale[:, None] / scale[None, :]  # (n, n)
    shares = fractions(shares)
    mean = _unit(shares, cosines)
    for _ in range(max_iter):
        angles = np.arccos(np.clip(cosines @ mean, -1, 1))
        pull = shares * np.divide(
            angles, np.sin(angles), out=np.ones_like(angles), where=angles > tol
        )
        tangent = pull - float(pull @ np.cos(angles)) * mean
        step = np.sqrt(max(0.0, tangent @ cosines @ tangent))
        if step < tol:
            break
        mean = _unit(np.cos(step) * mean + np.sin(step) / step * tangent, cosines)
    combined: Tensor = float(shares @ lengths) * mean / scale
    return combined


def _unit(x: Any, cosines: Any) -> Any:
    return x / np.sqrt(max(float(x @ cosines @ x), 1e-24))


@merge_method(
    "karcher",
    source="Karcher 1977, Riemannian center of mass; mergekit",
    whole=True,
    coefficients=coefficients,
    base="either",
)
def karcher(stack: Tensor, weights: Tensor, *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Compute the weighted mean of the directions on the sphere, and of the lengths.

    The mean direction minimises the sum of squared angles; mergekit weights all inputs equally.
    """
    return combine(stack, lambda g: coefficients(g, weights, max_iter=max_iter, tol=tol))
