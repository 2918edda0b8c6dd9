"""Slerp with the interpolation parameter given by the weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import arc, combine
from mergeforget.merge.methods import merge_method


def coefficients(gram: Any, weights: Tensor) -> Tensor:
    """Return the factors of the two inputs."""
    products = gram()
    if len(products) != 2:
        raise UsageError(
            f"nuslerp interpolates two tensors; {len(products)} are given. Take karcher for more."
        )
    shares = float(weights.sum())
    t = float(weights[1]) / shares if abs(shares) >= 1e-6 else 0.5
    lengths = np.sqrt(np.maximum(np.diag(products), 0.0)).clip(1e-8)
    cosine = float(np.clip(products[0, 1] / (lengths[0] * lengths[1]), -1, 1))
    return arc(t, cosine, line=1 - cosine * cosine <= 1e-16)


@merge_method(
    "nuslerp", source="mergekit, NuSLERP", whole=True, coefficients=coefficients, base="either"
)
def nuslerp(stack: Tensor, weights: Tensor) -> Tensor:
    """Interpolate two tensors along an arc, ``w_2 / (w_1 + w_2)`` of the way."""
    return combine(stack, lambda gram: coefficients(gram, weights))
