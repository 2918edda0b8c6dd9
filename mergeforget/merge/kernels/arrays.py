"""Functions for numpy arrays and torch tensors on any device, without importing torch.

Each function accepts either type and returns the type of its input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Tensor(Protocol):
    """Interface of ``numpy.ndarray`` and ``torch.Tensor`` that the kernels use."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def itemsize(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __float__(self) -> float: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __eq__(self, other: Any, /) -> Any: ...
    def __neg__(self) -> Tensor: ...
    def __abs__(self) -> Tensor: ...
    def __invert__(self) -> Tensor: ...
    def __add__(self, other: Any, /) -> Tensor: ...
    def __radd__(self, other: Any, /) -> Tensor: ...
    def __sub__(self, other: Any, /) -> Tensor: ...
    def __rsub__(self, other: Any, /) -> Tensor: ...
    def __mul__(self, other: Any, /) -> Tensor: ...
    def __rmul__(self, other: Any, /) -> Tensor: ...
    def __truediv__(self, other: Any, /) -> Tensor: ...
    def __matmul__(self, other: Any, /) -> Tensor: ...
    def __pow__(self, other: Any, /) -> Tensor: ...
    def __lt__(self, other: Any, /) -> Tensor: ...
    def __le__(self, other: Any, /) -> Tensor: ...
    def __gt__(self, other: Any, /) -> Tensor: ...
    def __ge__(self, other: Any, /) -> Tensor: ...
    def __and__(self, other: Any, /) -> Tensor: ...
    def __or__(self, other: Any, /) -> Tensor: ...
    # properties, because the overloads differ between the libraries
    @property
    def T(self) -> Any: ...
    @property
    def reshape(self) -> Callable[..., Tensor]: ...
    @property
    def sum(self) -> Callable[..., Tensor]: ...
    @property
    def clip(self) -> Callable[..., Tensor]: ...
    @property
    def argsort(self) -> Callable[..., Tensor]: ...
    @property
    def mean(self) -> Callable[..., Tensor]: ...
    @property
    def any(self) -> Any: ...
    @property
    def all(self) -> Any: ...
    @property
    def view(self) -> Any: ...
    @property
    def sort(self) -> Any: ...
    @property
    def var(self) -> Any: ...
    @property
    def __array__(self) -> Any: ...


T = TypeVar("T", bound=Tensor)


def library(x: Tensor) -> ModuleType:
    """Return numpy, or torch for a torch tensor; the functions used have the same names."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def as_torch(x: Tensor) -> torch.Tensor:
    """Tell the type checker that ``x`` is a torch tensor."""
    return cast("torch.Tensor", x)


def stacked(tensors: Tensor | Sequence[Tensor]) -> Tensor:
    """Stack a list of n tensors of one shape to (n, *shape); a stack is returned unchanged."""
    if not isinstance(tensors, list | tuple):
        return cast(Tensor, tensors)
    stack: Tensor = library(tensors[0]).stack(list(tensors))
    return stack


def as_weights(weights: Tensor | Sequence[float], stack: Tensor) -> Tensor:
    """Return one weight per tensor, (n,), in the library of the stack; numbers become float64."""
    if not isinstance(weights, list | tuple):
        return cast(Tensor, weights)
    if isinstance(stack, np.ndarray):
        return np.asarray(weights, np.float64)
    converted: Tensor = library(stack).tensor(list(weights), device=as_torch(stack).device)
    return converted


def like(x: Any, model: T) -> T:
    """Convert ``x`` to the library and device of ``model``; numbers get its dtype, too."""
    if isinstance(model, np.ndarray):
        return cast(T, x if x.dtype == np.bool_ else x.astype(model.dtype, copy=False))
    torch = library(model)
    moved = torch.as_tensor(x, device=as_torch(model).device)
    return cast(T, moved if moved.dtype == torch.bool else moved.to(model.dtype))


def column(weights: Tensor, stack: T) -> T:
    """Reshape (n,) to broadcast with (n, *shape), in the dtype and on the device of the stack."""
    return cast(T, like(weights, stack).reshape(-1, *[1] * (stack.ndim - 1)))


def to_dtype(x: T, dtype: str) -> T:
    """Convert ``x`` to ``float32`` or ``float64``, without a copy if possible."""
    if isinstance(x, np.ndarray):
        return cast(T, x.astype(dtype, copy=False))
    return cast(T, as_torch(x).to(getattr(library(x), dtype)))


def empty(shape: tuple[int, ...], model: T) -> T:
    """Return an uninitialised tensor with the library, dtype and device of ``model``."""
    if isinstance(model, np.ndarray):
        return cast(T, np.empty(shape, model.dtype))
    return cast(T, as_torch(model).new_empty(shape))


def as_array(x: Tensor) -> NDArray[Any]:
    """Convert ``x`` to a numpy array, without a copy if it is one."""
    return x if isinstance(x, np.ndarray) else as_torch(x).cpu().numpy()
