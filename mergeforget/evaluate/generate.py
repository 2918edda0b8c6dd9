"""Greedy generation in batches: the same text as row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import check_token_ids, cut_to_positions, position_limit
from mergeforget.errors import ResourceError
from mergeforget.evaluate.batching import ROWS, in_batches, out_of_memory, token_budget
from mergeforget.evaluate.decoding import (
    ONE_OWNER,
    RowOwners,
    greedy,
    model_generate,
    uncached,
)
from mergeforget.evaluate.self_check import SafeWays, safe_ways
from mergeforget.merge.multi_adapter import side_by_side


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Row],
    *,
    template: PromptTemplate = RAW,
    max_new_tokens: int = 256,
    batch_tokens: int | None = None,
    label: str = "Generate",
    on_done: Callable[[int, str], None] | None = None,
    owners: RowOwners = ONE_OWNER,
) -> list[str]:
    """Complete each prompt greedily, until the model ends the text by itself.

    Prompts are not truncated; completions are returned without special tokens.

    Args:
        template: how a prompt is rendered, raw by default, and which tokens end an answer.
        batch_tokens: prompt and new tokens of a batch; by default what the memory allows.
        on_done: called with each row's place and completion as soon as its batch is done.
        owners: whose adapter answers each prompt, where several answer in one batch.

    Source: SemEval-2025 Task 4, evaluation script, which does a row at a time.
    """
    ids = [template.prompt_ids(tokenizer, prompt) for prompt in prompts]
    completions = [""] * len(prompts)

    def keep(place: int, new: list[int]) -> None:
        completions[place] = str(tokenizer.decode(new, skip_special_tokens=True))
        if on_done is not None:
            on_done(place, completions[place])

    generate_ids(
        model,
        ids,
        stop=stop_ids(model, tokenizer, template),
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=label,
        on_done=keep,
        owners=owners,
    )
    return completions


def generate_ids(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int | None = None,
    label: str = "Generate",
    on_done: Callable[[int, list[int]], None] | None = None,
    owners: RowOwners = ONE_OWNER,
) -> list[list[int]]:
    """New token ids for each prompt, the one that ended it included.

    Rows share a batch only as far as the model's self-check allows, see ``safe_ways``.

    Raises:
        InputError: the model is not a causal language model.
    """
    ways = safe_ways(model)
    check_token_ids(model, prompts)
    fitting, _ = cut_to_positions(model, prompts, reserve=max_new_tokens)
    limit = position_limit(model) or 2**31

    def work(places: list[int]) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        budgets = [min(max_new_tokens, limit - len(fitting[place])) for place in places]
        for budget in dict.fromkeys(budgets):  # rows near the last position may add fewer tokens
            here = [p for p, own in zip(places, budgets, strict=True) if own == budget]
            for part in _apart([len(fitting[place]) for place in here], ways):
                own = [here[i] for i in part]
                batch = [fitting[place] for place in own]
                new = _decode(model, batch, stop, budget, owners.part(own), ways)
                found |= zip(own, new, strict=True)
        return [found[place] for place in places]

    return in_batches(
        model,
        [len(p) for p in fitting],
        work,
        budget=batch_tokens or token_budget(model),
        extra=max_new_tokens,
        label=label,
        on_done=on_done,
    )


def _apart(lengths: Sequence[int], ways: SafeWays) -> list[list[int]]:
    """Places of the rows that may be decoded together."""
    if ways.rows == "padded":
        return [list(range(len(lengths)))]
    if ways.rows != "equal":
        return [[place] for place in range(len(lengths))]
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        groups.setdefault(length, []).append(place)
    return list(groups.values())


def _decode(
    model: Any,
    prompts: list[list[int]],
    stop: Sequence[int],
    max_new_tokens: int,
    owners: RowOwners,
    ways: SafeWays,
) -> list[list[int]]:
    """Decode rows that may be decoded together, in the way that is safe for the model."""
    if ways.rows in ("padded", "equal"):
        padded = ways.rows == "padded"
        return greedy(model, prompts, stop, max_new_tokens, owners, padded=padded)
    decode = model_generate if ways.rows == "generate" else uncached
    owners.announce([0])
    return [decode(model, prompts[0], stop, max_new_tokens)]


def stop_ids(model: Any, tokenizer: Any, template: PromptTemplate = RAW) -> list[int]:
    """The tokens that end a text: the model's own, else the tokenizer's; in chat the template's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = tokenizer.eos_token_id
    own = [] if ends is None else [int(e) for e in (ends if isinstance(ends, list) else [ends])]
    chat = template.stop_ids(tokenizer) if template.header or template.kind == "chat" else []
    return list(dict.fromkeys([*own, *chat]))


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
