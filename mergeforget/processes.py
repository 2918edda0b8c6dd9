"""Several processes that train together, as `accelerate launch` or `torchrun` starts them.

The launcher says in the environment which process this is. The main one (rank 0) alone writes files
and speaks; what it finds, the others are told. Started plainly, there is one process, and nothing
here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from mergeforget.errors import UsageError

T = TypeVar("T")


def count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_launch() -> None:
    """Refuse launchers that cut the model itself into parts: nothing here would gather them."""
    for name, word in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(word, "").lower() in ("true", "1"):
            raise UsageError(
                f"{name} is not supported: every process holds the whole frozen model. Launch with "
                "--multi_gpu, and where a GPU is too small for the model set model.quantization: "
                "4bit and gradient_checkpointing: true."
            )


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
