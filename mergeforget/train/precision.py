"""Mixed precision: trained weights in float32, matrix products in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_AUTOCAST = "_mergeforget_autocast"  # attribute of a model whose weights are widened


def autocast_dtype(model: Any) -> torch.dtype | None:
    """Return the half-precision dtype of a model's products during training; None in float32.

    It is the dtype of the frozen weights, or the one that ``widened_weights`` replaced by float32.
    """
    noted: torch.dtype | None = getattr(model, _AUTOCAST, None)
    if noted is not None:
        return noted
    half_dtypes = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    return half_dtypes.pop() if len(half_dtypes) == 1 else torch.bfloat16 if half_dtypes else None


@contextmanager
def widened_weights(model: Any) -> Iterator[None]:
    """Convert the trained weights of a half-precision model to float32 for the training.

    An Adam step at a learning rate of 1e-5 is below the resolution of most bfloat16 weights, and a
    bfloat16 second moment does not decay. Forward and backward passes run under autocast in the
    model's own dtype; afterwards the weights are rounded to it.
    """
    dtype_of_products = autocast_dtype(model)
    if dtype_of_products is None:
        yield
        return
    original_dtypes = {
        p: p.dtype for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4
    }
    for parameter in original_dtypes:
        parameter.data = parameter.data.float()
    setattr(model, _AUTOCAST, dtype_of_products)
    try:
        yield
    finally:
        delattr(model, _AUTOCAST)
        for parameter, dtype in original_dtypes.items():
            parameter.data = parameter.data.to(dtype)


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Allow TF32 for float32 matrix products on a GPU inside the block; no effect on a CPU."""
    previous = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def autocast(model: Any) -> AbstractContextManager[Any]:
    """Return autocast to the model's half-precision dtype; no effect for a float32 model.

    The float32 factors of LoRA are cast, too, so their products are as fast as those of the base.
    """
    dtype = autocast_dtype(model)
    if dtype is None:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype)
