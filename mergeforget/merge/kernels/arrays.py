"""One set of functions for numpy arrays and torch tensors on any device, without importing torch.

A function here takes either and answers in kind.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

Tensor = Any  # numpy.ndarray or torch.Tensor


def library(x: Tensor) -> ModuleType:
    """numpy, or torch for a tensor of torch; the functions used here have one name in both."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def like(x: Tensor, model: Tensor) -> Tensor:
    """``x`` in the library and on the device of ``model``; numbers take its dtype too."""
    if isinstance(model, np.ndarray):
        return x if x.dtype == np.bool_ else x.astype(model.dtype, copy=False)
    torch = library(model)
    x = torch.as_tensor(x, device=model.device)
    return x if x.dtype == torch.bool else x.to(model.dtype)


def column(weights: Tensor, stack: Tensor) -> Tensor:
    """(n,) shaped to multiply (n, *shape), in the stack's dtype and device."""
    return like(weights, stack).reshape(-1, *[1] * (stack.ndim - 1))


def cast(x: Tensor, dtype: str) -> Tensor:
    """``x`` as ``float32`` or ``float64``, without a copy where it is that already."""
    if isinstance(x, np.ndarray):
        return x.astype(dtype, copy=False)
    return x.to(getattr(library(x), dtype))


def empty(shape: tuple[int, ...], model: Tensor) -> Tensor:
    """Room for a tensor of this shape in the library, dtype and on the device of ``model``."""
    if isinstance(model, np.ndarray):
        return np.empty(shape, model.dtype)
    return model.new_empty(shape)
