"""Batches by length and memory: rows of like length together, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from mergeforget.console import progress
from mergeforget.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")
CPU_TOKENS = 8192  # tokens of a batch on a CPU: past this a small model gets no faster
ROWS = 512  # at most in a batch: past this a decoding step gains nothing


def token_budget(model: Any, *, logits: bool = False) -> int:
    """How many tokens a batch may have, padding and new tokens counted.

    On a GPU: what fits into 0.6 of the free memory, by the bytes that a token's keys and values
    and its widest activation take, or its logits where all of them are kept.

    Args:
        model: a causal language model, an adapter on it or not.
        logits: every position's logits are computed, as a likelihood pass does.
    """
    import torch

    config = model.config.get_text_config(decoder=True)
    vocabulary = int(getattr(config, "vocab_size", 32000))
    if model.device.type != "cuda":
        return min(CPU_TOKENS, max(1024, 2**27 // vocabulary)) if logits else CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    per_token = _bytes_of_a_token(config) + (16 * vocabulary if logits else 0)
    return max(1024, int(0.6 * free / per_token))


def by_length(lengths: Sequence[int], budget: int, *, extra: int = 0) -> list[list[int]]:
    """Group places of rows so that each group, padded, stays within the budget.

    The longest come first, so that a batch that does not fit fails at once and not at the end.

    Args:
        lengths: tokens of each row.
        budget: tokens a batch may have; a row longer than that is a batch of its own.
        extra: tokens that every row will grow by.
    """
    groups: list[list[int]] = []
    width = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or len(groups[-1]) >= min(ROWS, max(1, budget // max(1, width))):
            groups.append([])
            width = lengths[place] + extra
        groups[-1].append(place)
    return groups


def in_batches(
    model: Any,
    lengths: Sequence[int],
    work: Callable[[list[int]], list[Result]],
    *,
    budget: int,
    extra: int = 0,
    label: str = "",
    on_done: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Do the work of every row, in batches that fit, with the model in eval mode.

    Args:
        lengths: tokens of each row.
        work: from the places of a batch's rows to a result of each.
        budget, extra: as in ``by_length``.
        label: of the progress; empty shows none.
        on_done: is given each row's place and result as soon as its batch is done.

    Returns:
        A result of each row, in their order.

    Raises:
        ResourceError: a single row does not fit.
    """
    found: dict[int, Result] = {}
    device = str(model.device)
    with _evaluating(model), progress(label, len(lengths)) if label else nullcontext() as bar:
        for batch in by_length(lengths, budget, extra=extra):
            for place, result in run_halving(batch, work, device):
                found[place] = result
                if on_done is not None:
                    on_done(place, result)
            if bar is not None:
                bar.advance(len(batch))
    return [found[place] for place in range(len(lengths))]


def run_halving(
    places: list[int], work: Callable[[list[int]], list[Result]], device: str
) -> Iterator[tuple[int, Result]]:
    """Do the work of one batch; where memory runs out, do its halves one after the other.

    Yields:
        (place, result) for each place.

    Raises:
        ResourceError: a single row does not fit.
    """
    waiting = [places]
    while waiting:
        batch = waiting.pop()
        try:
            results = work(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ResourceError(
                    f"Out of memory on {device} with a single row in the batch. Use a smaller "
                    "model, a lower --max-new-tokens, or shorter rows."
                ) from error
            half = len(batch) // 2
            waiting += [batch[half:], batch[:half]]
        else:
            yield from zip(batch, results, strict=True)
            continue
        _free(device)  # outside the handler, where the traceback no longer holds the tensors


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The model in eval mode while the block runs, then as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says so, on a GPU or a CPU."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def _free(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def _bytes_of_a_token(config: Any) -> int:
    """Keys and values of all layers, and the activations of one layer, at two bytes a number."""
    heads = int(config.num_attention_heads)
    width = int(config.hidden_size)
    head = int(getattr(config, "head_dim", None) or width // heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    return 2 * (2 * shared * head * int(config.num_hidden_layers) + 4 * (width + inner))
