"""Several processes that train together, as `accelerate launch` or `torchrun` starts them.

The launcher says in the environment which process this is. The main one (rank 0) alone writes files
and speaks; what it finds, the others are told. Started plainly, there is one process, and nothing
here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mergeforget.errors import UsageError

T = TypeVar("T")
SHARDED = "MERGEFORGET_SHARDED"  # the launcher's wish for FSDP, once it was taken
NOT_FSDP = {  # options of the launcher that nothing here would heed
    "FSDP_OFFLOAD_PARAMS": "The parts stay on the GPUs: leave it out, and launch more processes.",
    "FSDP_ACTIVATION_CHECKPOINTING": "Set gradient_checkpointing: true in the recipe instead.",
}


def count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_launch(*, trains: bool = False) -> None:
    """Refuse launchers that cut the model into parts, but for FSDP where an adapter is trained.

    Args:
        trains: take the wish for FSDP from the launcher's words: see ``sharded``. accelerate and
            transformers must not find it there, or they would cut the model in their own ways.

    Raises:
        UsageError: the launcher asks for what is not supported here.
    """
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise UsageError(
            "DeepSpeed is not supported. Launch with --multi_gpu; where a GPU is too small for the "
            "model, an adapter trains with --use_fsdp --fsdp_version 2, or on a 4-bit base "
            "(model.quantization: 4bit)."
        )
    if not _asked("ACCELERATE_USE_FSDP"):
        return
    if not trains:
        raise UsageError(
            "FSDP is for the training of adapters: here every process holds the whole model. "
            "Launch with --multi_gpu."
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("FSDP 1 is not supported. Launch with --use_fsdp --fsdp_version 2.")
    for word, instead in NOT_FSDP.items():
        if _asked(word):
            raise UsageError(f"--{word.lower()} is not supported. {instead}")
    os.environ[SHARDED] = os.environ.pop("ACCELERATE_USE_FSDP")


def sharded() -> bool:
    """Whether each process holds only its part of a frozen model that is trained upon.

    Then every pass through the model is the work of all processes together: what one does, all do.
    """
    return count() > 1 and _asked(SHARDED)


def _asked(word: str) -> bool:
    return os.environ.get(word, "").lower() in ("true", "1")


def rank() -> int:
    """Which of them this is, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def on_main(work: Callable[[], T]) -> T:
    """Let the main process work while the others wait.

    Returns:
        What it returned, in every process; it must be picklable.

    Raises:
        SystemExit: the work failed; in the main process its own error is raised.
    """
    if count() == 1:
        return work()
    _join()
    from torch import distributed

    if not is_main():
        told: list[tuple[T | None, int]] = [(None, 0)]
        distributed.broadcast_object_list(told, src=0)
        value, failure = told[0]
        if failure:
            raise SystemExit(failure)
        return value  # type: ignore[return-value]
    try:
        value = work()
    except Exception as error:
        distributed.broadcast_object_list([(None, getattr(error, "exit_code", 1))], src=0)
        raise
    distributed.broadcast_object_list([(value, 0)], src=0)
    return value


def gather(said: T) -> list[T]:
    """What each process says, by rank; all are told the same."""
    if count() == 1:
        return [said]
    _join()
    from torch import distributed

    answers = [said] * count()
    distributed.all_gather_object(answers, said)
    return answers


def in_any(said: bool) -> bool:
    """Whether any process says so."""
    return any(gather(said))


def _join() -> None:
    """Meet the other processes, once."""
    import torch
    from accelerate import PartialState
    from torch import distributed

    if not distributed.is_initialized():
        PartialState(cpu=not torch.cuda.is_available())


class RankShare:  # not a dataclass: importing dataclasses takes 10 ms of `mergeforget --help`
    """The share of one process in a job that several processes do together.

    Args:
        rank: Rank of this process, from 0.
        count: Number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    @property
    def main(self) -> bool:
        """Whether this process writes and prints the results."""
        return self.rank == 0

    def share(self, items: Iterable[T], size: Callable[[T], int]) -> list[T]:
        """Return the items of this process.

        Each item belongs to exactly one process, and all processes get about the same total size.
        """
        return sorted(items, key=size, reverse=True)[self.rank :: self.count]

    def gather(self, own: Sequence[T]) -> list[T]:
        """Return the items of all processes in rank order; every process gets all of them."""
        if self.count == 1:
            return list(own)
        return [item for part in gather(list(own)) for item in part]

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        self.gather([])

    def label(self, text: str) -> str:
        """Return the label of a progress bar, with the rank if there are several processes."""
        return text if self.count == 1 else f"{text} ({self.rank + 1} of {self.count})"


ALONE = RankShare()  # used within a distributed job when one process evaluates by itself


def rank_share() -> RankShare:
    """Return the share of this process among all launched processes.

    Raises:
        UsageError: The launcher shards the model, which an evaluation does not support.
    """
    check_launch()
    return RankShare(rank(), count())
