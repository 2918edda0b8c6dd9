"""Model Stock: interpolate towards the mean of the deltas, by their mean cosine."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import combine
from mergeforget.merge.methods import merge_method


def coefficients(gram: Any, weights: Tensor) -> Tensor:
    """Return ``t / n`` times the weights, with t from the mean cosine of the deltas."""
    found = gram()
    n = len(found)
    if n < 2:
        raise UsageError("model_stock measures the angle between deltas; give at least two.")
    lengths = np.sqrt(np.maximum(np.diag(found), 0.0))
    products = np.maximum(np.outer(lengths, lengths), 1e-6)
    cosine = float((found / products)[np.triu_indices(n, 1)].mean())
    below = 1 + (n - 1) * cosine
    t = n * cosine / below if abs(below) >= 1e-6 else 0.0
    return t / n * np.asarray(weights, np.float64)


@merge_method(
    "model_stock",
    source="Model Stock, arXiv:2403.19522, eq. 4; mergekit",
    whole=True,
    coefficients=coefficients,
)
def model_stock(stack: Tensor, weights: Tensor) -> Tensor:
    """``t * mean_i(w_i x_i)``, ``t = n c / (1 + (n - 1) c)``, c the mean cosine of the deltas."""
    return combine(stack, lambda gram: coefficients(gram, weights))
