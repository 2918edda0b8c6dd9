"""A thread pool for merging, with one BLAS thread per worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

BRING_BLAS = ("numpy", "scipy", "scipy.linalg", "torch")


@contextmanager
def workers(threads: int = 0) -> Iterator[ThreadPoolExecutor]:
    """A pool for work on many small matrices.

    Every worker calls BLAS, and BLAS would start a thread per core for each of them: on two cores
    such a merge took four times as long. One thread each also gives the same bits however many
    workers there are.

    Args:
        threads: 0 for one per core.
    """
    count = threads or os.cpu_count() or 1
    limits = _libraries(tuple(name in sys.modules for name in BRING_BLAS))
    with limits.limit(limits=1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        yield pool


@cache
def _libraries(loaded: tuple[bool, ...]) -> ThreadpoolController:
    """The linear algebra in this process; to look for it takes longer than a small merge."""
    return ThreadpoolController()
