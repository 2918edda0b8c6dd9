"""One set of functions for numpy arrays and torch tensors on any device, without importing torch.

Each function accepts either kind and returns the kind it was given.
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
    """What ``numpy.ndarray`` and ``torch.Tensor`` share and the kernels use."""

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
    """numpy, or torch for a torch tensor; the functions used here have the same name in both."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def as_torch(x: Tensor) -> torch.Tensor:
    """Tell the type checker that ``x``, which is not a numpy array, is a torch tensor."""
    return cast("torch.Tensor", x)


def stacked(tensors: Tensor | Sequence[Tensor]) -> Tensor:
    """A list of n tensors of one shape as (n, *shape); a stack is returned as it is."""
    if not isinstance(tensors, list | tuple):
        return cast(Tensor, tensors)
    stack: Tensor = library(tensors[0]).stack(list(tensors))
    return stack


def as_weights(weights: Tensor | Sequence[float], stack: Tensor) -> Tensor:
    """One weight per tensor, (n,), in the library of the stack; numbers become float64."""
    if not isinstance(weights, list | tuple):
        return cast(Tensor, weights)
    if isinstance(stack, np.ndarray):
        return np.asarray(weights, np.float64)
    found: Tensor = library(stack).tensor(list(weights), device=as_torch(stack).device)
    return found


def like(x: Any, model: T) -> T:
    """``x`` in the library and on the device of ``model``; numbers take its dtype too."""
    if isinstance(model, np.ndarray):
        return cast(T, x if x.dtype == np.bool_ else x.astype(model.dtype, copy=False))
    torch = library(model)
    moved = torch.as_tensor(x, device=as_torch(model).device)
    return cast(T, moved if moved.dtype == torch.bool else moved.to(model.dtype))


def column(weights: Tensor, stack: T) -> T:
    """(n,) reshaped to multiply (n, *shape), in the stack's dtype and on its device."""
    return cast(T, like(weights, stack).reshape(-1, *[1] * (stack.ndim - 1)))


def to_dtype(x: T, dtype: str) -> T:
    """``x`` as ``float32`` or ``float64``, without a copy where it already is."""
    if isinstance(x, np.ndarray):
        return cast(T, x.astype(dtype, copy=False))
    return cast(T, as_torch(x).to(getattr(library(x), dtype)))


def empty(shape: tuple[int, ...], model: T) -> T:
    """An uninitialised tensor of this shape in the library, dtype and device of ``model``."""
    if isinstance(model, np.ndarray):
        return cast(T, np.empty(shape, model.dtype))
    return cast(T, as_torch(model).new_empty(shape))


def as_array(x: Tensor) -> NDArray[Any]:
    """A numpy array with the same values, without a copy where ``x`` is one."""
    return x if isinstance(x, np.ndarray) else as_torch(x).cpu().numpy()
