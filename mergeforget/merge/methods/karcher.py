"""Karcher mean on the sphere."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import combine, fractions
from mergeforget.merge.methods import merge_method

DISTINCT = 1e-3  # smallest sine of the angle between a direction and the mean that has a side


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
    mean_length = float(fractions(weights) @ lengths)  # a zero tensor has length 0, no direction
    scale = np.where(nonzero, lengths, 1.0)
    cosines = products / scale[:, None] / scale[None, :]  # (n, n)
    shares = fractions(shares)
    mean = shares
    if _length(mean, cosines) < tol:  # the directions cancel; mergekit starts from the first
        mean = np.eye(len(shares))[shares != 0][0]
    mean = mean / _length(mean, cosines)
    for _ in range(max_iter):
        angles = np.arccos(np.clip(cosines @ mean, -1, 1))
        sines = np.sin(angles)
        # a direction opposite to the mean pulls to no side
        pull = np.divide(angles, sines, out=(angles < 1) * 1.0, where=sines > DISTINCT) * shares
        tangent = pull - float(pull @ np.cos(angles)) * mean
        step = _length(tangent, cosines)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        mean = mean / _length(mean, cosines)
    combined: Tensor = mean_length * mean / scale
    return combined


def _length(x: Any, cosines: Any) -> float:
    return float(np.sqrt(max(float(x @ cosines @ x), 1e-24)))


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
