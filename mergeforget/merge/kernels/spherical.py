"""Methods that combine whole tensors by numbers found from their inner products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.merge.kernels.arrays import Tensor, library, to_dtype
from mergeforget.merge.kernels.sign_election import weighted_sum

Gram = Callable[[], NDArray[np.float64]]


def combine(stack: Tensor, coefficients: Callable[[Gram], Any]) -> Tensor:
    """``sum_i c_i x_i``, with c from the inner products of the n tensors."""
    return weighted_sum(stack, coefficients(lambda: gram(stack)))


def gram(stack: Tensor) -> NDArray[np.float64]:
    """Inner products of n tensors, (n, n), summed in float64 by row."""
    rows = stack.reshape(len(stack), -1, stack.shape[-1])
    found = np.empty((len(stack), len(stack)))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows[: i + 1]):
            sums = library(stack).einsum("ij,ij->i", one, other)
            found[i, j] = found[j, i] = float(to_dtype(sums, "float64").sum())
    return found


def arc(t: float, cosine: float, *, line: bool) -> NDArray[np.float64]:
    """The two coefficients of a slerp, or those of the straight line."""
    if line:
        return np.array([1 - t, t])
    angle = np.arccos(np.clip(cosine, -1, 1))
    sines: NDArray[np.float64] = np.sin([(1 - t) * angle, t * angle]) / np.sin(angle)
    return sines
