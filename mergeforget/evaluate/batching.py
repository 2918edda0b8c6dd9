"""Batches of rows of similar length within a memory budget, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from mergeforget.console import progress
from mergeforget.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")
CPU_TOKENS = 8192  # tokens per batch on a CPU; larger batches are not faster
ROWS = 512  # maximum rows per batch; a decoding step gains nothing from more
DEPENDENT = ("longrope", "dynamic")  # rotary frequencies depend on the longest row of a batch


def token_budget(model: Any, *, logits: bool = False) -> int:
    """Return the maximum number of tokens per batch, including padding and new tokens.

    On a GPU, the tokens must fit into 60 % of the free memory. A token needs memory for its keys
    and values, its widest activation, and its logits if they are computed.

    Args:
        model: A causal language model, with or without an adapter.
        logits: Whether the logits of every position are computed, as in a likelihood pass.
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


def by_length(
    lengths: Sequence[int], budget: int, *, extra: int = 0, similar: bool = False
) -> list[list[int]]:
    """Group the indices of rows so that each padded group stays within the budget.

    The longest rows come first, so that a batch that does not fit fails at the start.

    Args:
        lengths: Number of tokens of each row.
        budget: Maximum number of tokens per batch; a longer row forms a batch of its own.
        extra: Number of tokens that will be added to every row.
        similar: Group only rows of similar length, see ``little_padding``.

    >>> by_length([90, 10, 100, 12], 1000, similar=True)
    [[2, 0], [3, 1]]
    """
    groups: list[list[int]] = []
    width = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = not groups or len(groups[-1]) >= min(ROWS, max(1, budget // max(1, width)))
        if full or (similar and not little_padding(lengths[place], width - extra)):
            groups.append([])
            width = lengths[place] + extra
        groups[-1].append(place)
    return groups


def little_padding(length: int, longest: int) -> bool:
    """Return whether padding a row costs less than another forward pass.

    At most a quarter of the longest row, or 16 tokens, may be padding.
    """
    return longest - length <= max(16, longest // 4)


def in_batches(
    model: Any,
    lengths: Sequence[int],
    work: Callable[[list[int]], list[Result]],
    *,
    budget: int,
    extra: int = 0,
    similar: bool = False,
    label: str = "",
    on_done: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Process all rows in batches that fit into memory, with the model in eval mode.

    Args:
        lengths: Number of tokens of each row.
        work: Function from the indices of the rows of a batch to one result per row.
        budget, extra, similar: As in ``by_length``.
        label: Label of the progress bar; no bar is shown if it is empty.
        on_done: Called with the index and the result of each row when its batch is done.

    Returns:
        One result per row, in the order of the rows.

    Raises:
        ResourceError: A single row does not fit into memory.
    """
    results: dict[int, Result] = {}
    device = str(model.device)
    with _evaluating(model), progress(label, len(lengths)) if label else nullcontext() as bar:
        for batch in by_length(lengths, budget, extra=extra, similar=similar):
            for place, result in run_halving(batch, work, device):
                results[place] = result
                if on_done is not None:
                    on_done(place, result)
            if bar is not None:
                bar.advance(len(batch))
    return [results[place] for place in range(len(lengths))]


def run_halving(
    places: list[int], work: Callable[[list[int]], list[Result]], device: str
) -> Iterator[tuple[int, Result]]:
    """Process one batch; if memory runs out, process its halves one after the other.

    Yields:
        (index, result) of each row.

    Raises:
        ResourceError: A single row does not fit into memory.
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
        _free(device)  # after the handler: inside it, the traceback references the tensors


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put the model into eval mode in the block, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error is torch's for a lack of memory, on a GPU or a CPU."""
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


def original_length(model: Any) -> tuple[int, str] | None:
    """Return the length up to which the frequencies are constant, and the type; None if always.

    Args:
        model: A causal language model, with or without an adapter.
    """
    config = model.config.get_text_config(decoder=True)
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_layer = [v for v in found.values() if isinstance(v, dict)] if isinstance(found, dict) else []
    limits = []
    for one in by_layer or ([found] if isinstance(found, dict) else []):
        kind = next((k for k in DEPENDENT if k in str(one.get("rope_type", one.get("type")))), None)
        length = (
            one.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", None)
            or getattr(config, "max_position_embeddings", None)
        )
        if kind is not None and length:
            limits.append((int(length), kind))
    return min(limits, default=None)


def alike(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Group the indices of rows that have the same rotary frequencies in a forward pass.

    Args:
        lengths: Number of tokens of each row.
    """
    limit = original_length(model)
    if limit is None:
        return [list(range(len(lengths)))]
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        beyond = length if limit[1] == "dynamic" else 1
        groups.setdefault(beyond if length > limit[0] else 0, []).append(place)
    return list(groups.values())


def crosses(model: Any, length: int, new_tokens: int) -> bool:
    """Return whether the frequencies may change while a model continues a prompt.

    Args:
        length: Number of tokens of the prompt.
        new_tokens: Maximum number of new tokens.
    """
    limit = original_length(model)
    if limit is None or length + new_tokens <= limit[0]:
        return False
    return limit[1] == "dynamic" or length <= limit[0]


def forget_lengths(model: Any) -> None:
    """Make the next forward pass compute the frequencies for its own length."""
    if original_length(model) is None:
        return
    for module in model.modules():
        for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)
