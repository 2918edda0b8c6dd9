"""Answers of several adapters in one batch, and how many of them a batch has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import ResourceError
from mergeforget.evaluate.batching import ROWS, out_of_memory, token_budget
from mergeforget.evaluate.decoding import RowOwners
from mergeforget.evaluate.generate import generate
from mergeforget.evaluate.self_check import safe_ways
from mergeforget.merge.multi_adapter import side_by_side

CPU_ROWS = 48  # on one core: a step of as many rows takes as long for each as one of more
MOST = 16  # adapters at once: as many as a search keeps merged


def room(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Row],
    max_new_tokens: int,
    template: PromptTemplate = RAW,
) -> int:
    """How many adapters' answers to the same prompts fill one batch, at least 1.

    A step of decoding reads all weights, however few rows there are. So further rows cost next to
    nothing until a batch is full: of the rows that the device computes in the time of reading the
    weights, or of the tokens that its memory holds. Past that, side by side only adds the products
    of the unmerged factors; merged in place they cost nothing. The figures are in
    ``docs/choosing.md``.
    """
    if not prompts:
        return 1
    width = max(len(template.prompt_ids(tokenizer, prompt)) for prompt in prompts) + max_new_tokens
    rows = CPU_ROWS if model.device.type == "cpu" else ROWS
    return min(MOST, max(1, min(rows, token_budget(model) // width) // len(prompts)))


def generate_together(
    model: Any,
    tokenizer: Any,
    adapters: Sequence[Adapter],
    prompts: Sequence[Sequence[str | Row]],
    *,
    template: PromptTemplate = RAW,
    max_new_tokens: int = 256,
    batch_tokens: int | None = None,
    label: str = "Generate",
    on_done: Callable[[int, int, str], None] | None = None,
) -> list[list[str]]:
    """What the model writes with each adapter after each of that adapter's prompts, greedily.

    The same texts as of one adapter after the other on the merged weights, but where two tokens are
    so near that rounding decides.

    Args:
        model: without an adapter.
        prompts: those of each adapter.
        on_done: is given the place of an adapter, that of a prompt, and the completion.

    Raises:
        UnfitError: the model cannot tell the rows apart.
        ResourceError: the adapters, or a single row beside them, do not fit into memory.
        others as ``side_by_side``.
    """
    places = [(i, j) for i, own in enumerate(prompts) for j in range(len(own))]

    def keep(place: int, text: str) -> None:
        if on_done is not None:
            on_done(*places[place], text)

    safe_ways(model)  # its probes belong to no adapter
    with _explained(model), side_by_side(model, adapters) as beside:
        texts = iter(
            generate(
                model,
                tokenizer,
                [prompts[i][j] for i, j in places],
                template=template,
                max_new_tokens=max_new_tokens,
                batch_tokens=batch_tokens,
                label=label,
                on_done=keep,
                owners=RowOwners([i for i, _ in places], beside.rows),
            )
        )
    return [[next(texts) for _ in own] for own in prompts]


@contextmanager
def _explained(model: Any) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"Out of memory on {model.device}: so many adapters do not fit beside the model. Let "
            "fewer answer in one batch, with --together."
        ) from error
