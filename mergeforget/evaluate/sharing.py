"""How several processes share the rows of one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mergeforget import distributed

Item = TypeVar("Item")


@dataclass(frozen=True)
class RankShare:
    """This process among those that evaluate together.

    Attributes:
        rank: of this one, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes results and prints them."""
        return self.rank == 0

    def share(self, items: Iterable[Item], size: Callable[[Item], int]) -> list[Item]:
        """This process's part of the items: each is in one part, and the parts cost about alike."""
        return sorted(items, key=size, reverse=True)[self.rank :: self.count]

    def gather(self, own: Sequence[Item]) -> list[Item]:
        """What all processes have, in the order of their ranks; each gets all of it."""
        if self.count == 1:
            return list(own)
        return [item for part in distributed.gather(list(own)) for item in part]

    def wait(self) -> None:
        """Go on when every process has come here."""
        self.gather([])

    def label(self, text: str) -> str:
        """The label of a progress, with the process where there are several."""
        return text if self.count == 1 else f"{text} ({self.rank + 1} of {self.count})"


ALONE = RankShare()  # also among several processes, where one of them evaluates by itself


def together() -> RankShare:
    """Every process that was launched shares; one alone where none was.

    Raises:
        UsageError: the launcher cuts the model itself into parts.
    """
    distributed.check_launch()
    return RankShare(distributed.rank(), distributed.count())
