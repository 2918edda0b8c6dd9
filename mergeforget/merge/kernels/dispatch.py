"""Choose between numpy and loops compiled by numba; run both on a thread pool.

Both give bit-identical results for any number of threads.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

WORTH = 50_000_000  # entries for which numpy takes longer than loading the compiled loops

T = TypeVar("T")
R = TypeVar("R")
_loops: ModuleType | None = None


def expect(entries: int) -> None:
    """Load the compiled loops if numba is installed and the work is large enough.

    Numba caches compiled code next to the source or in the user's cache; if both are read-only,
    numpy is used.
    """
    global _loops
    if _loops is None and entries >= WORTH:
        try:
            from mergeforget.merge.kernels import numba_loops
        except (ImportError, RuntimeError):
            return
        _loops = numba_loops


def loops(*arrays: Any) -> ModuleType | None:
    """Return the compiled loops if they are loaded and apply: contiguous float32 numpy arrays."""
    if _loops is None:
        return None
    applicable = all(
        isinstance(x, np.ndarray) and x.dtype == np.float32 and x.flags.c_contiguous for x in arrays
    )
    return _loops if applicable else None


class Workspace(threading.local):
    """Buffers that a thread reuses for every block, because allocation is slower than the sums.

    An array requested under a name overwrites the previous one of that name.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            buffer = self._buffers[name] = np.empty(size, np.uint8)
        taken: NDArray[Any] = buffer[:size].view(dtype).reshape(shape)
        return taken


BRING_BLAS = ("numpy", "scipy", "scipy.linalg", "torch")


@contextmanager
def workers(threads: int = 0) -> Iterator[ThreadPoolExecutor]:
    """Yield a thread pool for work on many small matrices.

    BLAS would start one thread per core in each worker: on two cores,
    such a merge took four times as long. With one BLAS thread per worker, the result also does not
    depend on the number of workers.

    Args:
        threads: Number of threads; 0 is one per core.
    """
    count = threads or os.cpu_count() or 1
    with _single_threaded_blas(), ThreadPoolExecutor(count) as pool:
        yield pool


def map_in_threads(act: Callable[[T], R], items: Sequence[T], threads: int = 0) -> list[R]:
    """Apply a function to each item on ``workers``; a single item runs in the calling thread."""
    if len(items) == 1:
        with _single_threaded_blas():
            return [act(items[0])]
    with workers(threads) as pool:
        return list(pool.map(act, items))


def _single_threaded_blas() -> Any:
    """Return a context in which BLAS uses one thread."""
    limits = _libraries(tuple(name in sys.modules for name in BRING_BLAS))
    return limits.limit(limits=1, user_api="blas")


@cache
def _libraries(loaded: tuple[bool, ...]) -> ThreadpoolController:
    """Return the BLAS libraries of this process; cached, since the lookup is slow."""
    return ThreadpoolController()
