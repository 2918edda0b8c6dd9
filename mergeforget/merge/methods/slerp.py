"""Spherical linear interpolation of two tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import arc, combine
from mergeforget.merge.methods import merge_method

COLINEAR = 0.9995  # smallest cosine for linear interpolation


def coefficients(gram: Any, weights: Tensor, *, t: float = 0.5) -> Tensor:
    """Return the factors of the two inputs."""
    products = gram()
    if len(products) != 2:
        raise UsageError(
            f"slerp interpolates two tensors; {len(products)} are given. Take karcher for more."
        )
    lengths = np.sqrt(np.maximum(np.diag(products), 0.0))
    lengths = np.where(lengths > 1e-8, lengths, 1.0)
    cosine = products[0, 1] / (lengths[0] * lengths[1])
    return arc(t, cosine, line=abs(cosine) > COLINEAR) * np.asarray(weights, np.float64)


@merge_method(
    "slerp",
    source="Shoemake 1985, Animating rotation with quaternion curves; mergekit",
    whole=True,
    coefficients=coefficients,
    base="either",
)
def slerp(stack: Tensor, weights: Tensor, *, t: float = 0.5) -> Tensor:
    """Interpolate two tensors along the arc between their directions, at fraction ``t``.

    ``sin((1 - t) a) / sin(a) * x_1 + sin(t a) / sin(a) * x_2``, with a the angle between them; each
    is then multiplied by its weight.
    """
    return combine(stack, lambda gram: coefficients(gram, weights, t=t))
