"""Random numbers that depend only on a seed and the name of a tensor."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NamedGenerator:
    """One random stream per tensor of a stack.

    The numbers are drawn on the CPU by numpy's SFC64, seeded with SHA-256 of seed, name and the
    index of the tensor in the stack. The numbers of a module therefore do not depend on the order,
    the thread or the device, nor on whether a tensor is read in blocks.
    """

    def __init__(self, seed: int, name: str) -> None:
        self.seed, self.name = seed, name
        self._streams: dict[int, np.random.SFC64] = {}
        self._spare: dict[int, NDArray[np.uint32]] = {}

    def below(self, density: float, i: int, count: int) -> NDArray[np.bool_]:
        """Draw ``count`` booleans for tensor ``i``, true with probability ``density`` (to 2^-32).

        A draw that is true at one density is also true at every larger density.
        """
        return self.numbers(i, count) <= self.limit(density)

    @staticmethod
    def limit(density: float) -> np.uint32:
        """Return the largest random number that counts as below the density."""
        return np.uint32(max(0, int(np.ceil(density * 2**32)) - 1))

    def uniform(self, i: int, count: int) -> NDArray[np.float64]:
        """Draw ``count`` numbers for tensor ``i``, uniform in [0, 1)."""
        return self.numbers(i, count) * 2.0**-32

    def numbers(self, i: int, count: int) -> NDArray[Any]:
        """Draw ``count`` uint32 numbers for tensor ``i``."""
        spare = self._spare.pop(i, np.empty(0, np.uint32))
        words = self._stream(i).random_raw((count - len(spare) + 1) // 2)
        drawn = words.view(np.uint32)
        if len(spare):
            drawn = np.concatenate([spare, drawn])
        if len(drawn) > count:  # a word has two numbers; the second is kept for the next call
            self._spare[i] = drawn[count:].copy()
        return drawn[:count]

    def state(self, i: int) -> NDArray[np.uint64]:
        """Return the state of the generator of tensor ``i``, (4,), for compiled loops."""
        found: NDArray[np.uint64] = self._stream(i).state["state"]["state"]
        return found.copy()

    def _stream(self, i: int) -> np.random.SFC64:
        if i not in self._streams:
            digest = hashlib.sha256(f"{self.seed}\0{self.name}\0{i}".encode()).digest()
            self._streams[i] = np.random.SFC64(int.from_bytes(digest[:16], "little"))
        return self._streams[i]
