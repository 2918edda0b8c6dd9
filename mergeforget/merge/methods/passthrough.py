"""Copy a single input, unchanged or scaled."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import combine
from mergeforget.merge.methods import merge_method


def coefficients(gram: Any, weights: Tensor, *, scale: float = 1.0) -> Any:
    """Return the factor of the only input."""
    if len(weights) != 1:
        raise UsageError(f"passthrough copies one input; {len(weights)} are given.")
    return scale * np.asarray(weights, np.float64)


@merge_method(
    "passthrough", source="mergekit 0.1.5, passthrough", coefficients=coefficients, base="either"
)
def passthrough(stack: Tensor, weights: Tensor, *, scale: float = 1.0) -> Tensor:
    """Copy one input, times ``scale``. With ``--rank`` it truncates an adapter to that rank."""
    return combine(stack, lambda gram: coefficients(gram, weights, scale=scale))
