"""Mixed precision: float32 weights while they are trained, half-precision products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_AUTOCAST = "_mergeforget_autocast"  # attribute of a model whose weights are widened


def autocast_dtype(model: Any) -> torch.dtype | None:
    """Half type in which a model's products are computed during training; None in float32.

    It is the type of the frozen weights, or the one that ``widened_weights`` replaced by float32.
    """
    noted: torch.dtype | None = getattr(model, _AUTOCAST, None)
    if noted is not None:
        return noted
    half = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    return half.pop() if len(half) == 1 else torch.bfloat16 if half else None


@contextmanager
def widened_weights(model: Any) -> Iterator[None]:
    """Hold the trained weights of a half-precision model in float32 while they are trained.

    An Adam step at a learning rate of 1e-5 is below the resolution of most bfloat16 weights, and a
    bfloat16 second moment does not decay. Forward and backward passes run under autocast in the
    model's own type; afterwards the weights are rounded back to it.
    """
    half = autocast_dtype(model)
    if half is None:
        yield
        return
    own = {p: p.dtype for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4}
    for parameter in own:
        parameter.data = parameter.data.float()
    setattr(model, _AUTOCAST, half)
    try:
        yield
    finally:
        delattr(model, _AUTOCAST)
        for parameter, dtype in own.items():
            parameter.data = parameter.data.to(dtype)


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Allow TF32 for float32 matrix products on a GPU during a training; a CPU has no TF32."""
    own = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(own)


def autocast(model: Any) -> AbstractContextManager[Any]:
    """Autocast for a forward pass of a training in the model's half type; no effect in float32.

    LoRA's float32 factors are cast as well, so their products cost what those of the base cost.
    """
    half = autocast_dtype(model)
    if half is None:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, half)
