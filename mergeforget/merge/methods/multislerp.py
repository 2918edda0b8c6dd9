"""Spherical mean of several tensors, scaled to their mean length."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import combine, fractions
from mergeforget.merge.methods import merge_method


def coefficients(
    gram: Any, weights: Tensor, *, normalize_weights: bool = True, eps: float = 1e-8
) -> Any:
    """Return the factor of each input, from the inner products."""
    products = gram()
    if len(products) == 1:
        return np.ones(1)
    shares = fractions(weights) if normalize_weights else np.asarray(weights, np.float64)
    lengths = np.sqrt(np.maximum(np.diag(products), 0.0))
    units = shares / (lengths + eps)
    length = float(np.sqrt(max(0.0, units @ products @ units)))
    if length < eps:
        if len(products) == 2:
            return shares
        raise UsageError(
            "The weighted directions cancel, so the mean direction is undefined. Use other weights."
        )
    return float(shares @ lengths) * units / length


@merge_method(
    "multislerp",
    source="mergekit 0.1.5, multislerp",
    whole=True,
    coefficients=coefficients,
    base="either",
)
def multislerp(
    stack: Tensor, weights: Tensor, *, normalize_weights: bool = True, eps: float = 1e-8
) -> Tensor:
    """Interpolate any number of tensors on the sphere, at their weighted mean length.

    mergekit maps the inputs to the tangent space at their mean and back; their weighted mean there
    is zero, so the result is the normalised mean of the directions.
    """
    return combine(
        stack, lambda g: coefficients(g, weights, normalize_weights=normalize_weights, eps=eps)
    )
