"""Distributed runs, started by `accelerate launch` or `torchrun`.

The launcher sets rank and world size in the environment. Only rank 0 writes files and prints, and
broadcasts its results. Without a launcher the world size is 1, and these functions do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mergeforget.errors import UsageError

T = TypeVar("T")
SHARDED = "MERGEFORGET_SHARDED"  # set instead of the launcher's ACCELERATE_USE_FSDP
NOT_FSDP = {  # launcher options without effect here
    "FSDP_OFFLOAD_PARAMS": "Shards stay on the GPUs: leave it out, and launch more processes.",
    "FSDP_ACTIVATION_CHECKPOINTING": "Set gradient_checkpointing: true in the recipe instead.",
}


def world_size() -> int:
    """Return the world size."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_launch(*, trains: bool = False) -> None:
    """Check the launcher's options: sharding is supported to train an adapter with FSDP2 only.

    Args:
        trains: Allow FSDP; see ``sharded``. The launcher's variable is removed from the
            environment, or accelerate and transformers would shard the model themselves.

    Raises:
        UsageError: The launcher requests DeepSpeed, FSDP 1, or an FSDP option without effect here.
    """
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise UsageError(
            "DeepSpeed is not supported. Launch with --multi_gpu. If the model does not fit on a "
            "GPU, train the adapter with --use_fsdp --fsdp_version 2, or on a 4-bit base "
            "(model.quantization: 4bit)."
        )
    if not _asked("ACCELERATE_USE_FSDP"):
        return
    if not trains:
        raise UsageError(
            "FSDP is supported for training adapters only; here each rank loads the whole model. "
            "Launch with --multi_gpu."
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("FSDP 1 is not supported. Launch with --use_fsdp --fsdp_version 2.")
    for word, instead in NOT_FSDP.items():
        if _asked(word):
            raise UsageError(f"--{word.lower()} is not supported. {instead}")
    os.environ[SHARDED] = os.environ.pop("ACCELERATE_USE_FSDP")


def sharded() -> bool:
    """Return whether each rank loads only its shard of the frozen base model.

    Every forward pass is then collective: all ranks must run the same passes.
    """
    return world_size() > 1 and _asked(SHARDED)


def _asked(word: str) -> bool:
    return os.environ.get(word, "").lower() in ("true", "1")


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this process writes files and prints."""
    return rank() == 0


def on_main(work: Callable[[], T]) -> T:
    """Run a function on rank 0 while the other ranks wait.

    Returns:
        Its result, on every rank; it must be picklable.

    Raises:
        SystemExit: The function failed; rank 0 raises its own error.
    """
    if world_size() == 1:
        return work()
    _join()
    from torch import distributed

    if not is_main():
        received: list[tuple[T | None, int]] = [(None, 0)]
        distributed.broadcast_object_list(received, src=0)
        value, failure = received[0]
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


def gather(value: T) -> list[T]:
    """Return the values of all ranks in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    _join()
    from torch import distributed

    values = [value] * world_size()
    distributed.all_gather_object(values, value)
    return values


def in_any(value: bool) -> bool:
    """Return whether the value is true on any rank."""
    return any(gather(value))


def _join() -> None:
    """Initialise the process group unless that is done already."""
    import torch
    from accelerate import PartialState
    from torch import distributed

    if not distributed.is_initialized():
        PartialState(cpu=not torch.cuda.is_available())


class RankShare:  # not a dataclass: importing dataclasses takes 10 ms of `mergeforget --help`
    """The share of one process in a distributed job.

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


ALONE = RankShare()  # for an evaluation by a single process of a distributed job


def rank_share() -> RankShare:
    """Return the share of this process among all launched processes.

    Raises:
        UsageError: The launcher shards the model, which an evaluation does not support.
    """
    check_launch()
    return RankShare(rank(), world_size())
