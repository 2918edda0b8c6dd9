"""Greedy generation in batches, for one adapter or several; equals generation row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.data.chat_template import answer_text
from mergeforget.data.schema import Row
from mergeforget.data.templating import CLOSED_THINKING, RAW, PromptTemplate
from mergeforget.data.tokens import check_token_ids, cut_to_positions, position_limit
from mergeforget.errors import ResourceError
from mergeforget.evaluate.batching import ROWS, in_batches, out_of_memory, token_budget
from mergeforget.evaluate.decoding import (
    SAME_ADAPTER,
    RowAdapters,
    greedy,
    greedy_refilled,
    has_plain_cache,
    model_generate,
    uncached,
)
from mergeforget.evaluate.rotary import alike, crosses, forget_lengths
from mergeforget.evaluate.self_check import SafeModes, safe_modes
from mergeforget.evaluate.static_decoding import greedy_static
from mergeforget.merge.multi_adapter import side_by_side
from mergeforget.metrics._leaks import leaked


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
    adapters_of: RowAdapters = SAME_ADAPTER,
) -> list[str]:
    """Complete each prompt greedily until a stop token or the token limit.

    Args:
        template: Renders the prompts (raw by default) and names the tokens that end an answer.
        batch_tokens: Maximum number of prompt and new tokens per batch; as many as fit into memory
            by default.
        on_done: Called with the index and the completion of each row when its batch is done.
        adapters_of: Adapter of each prompt, if a batch combines several adapters.

    Returns:
        Completions without special tokens.

    Source: SemEval-2025 Task 4, evaluation script, which generates row by row.
    """
    ids = [template.prompt_ids(tokenizer, prompt) for prompt in prompts]
    completions = [""] * len(prompts)

    def keep(place: int, new: list[int]) -> None:
        completions[place] = answer_from(tokenizer, template, prompts[place], new)
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
        adapters_of=adapters_of,
    )
    return completions


def answer_from(
    tokenizer: Any, template: PromptTemplate, prompt: str | Row, new: Sequence[int]
) -> str:
    """Return the answer in generated tokens, without the thoughts before it.

    The thoughts are included if they reveal the answer of a row and the rest does not: a model that
    writes a secret and then refuses to answer has not forgotten it.
    """
    answer, text = template.answer_of(tokenizer, new), answer_text(tokenizer, new)
    if answer == text or isinstance(prompt, str) or not prompt.output:
        return answer
    thoughts = CLOSED_THINKING.search(prompt.output)  # the thoughts are part of the reference
    hidden = leaked(prompt.output, text, prompt.prompt) and not leaked(
        prompt.output, answer, prompt.prompt
    )
    return text if thoughts or hidden else answer


def generate_ids(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int | None = None,
    label: str = "Generate",
    on_done: Callable[[int, list[int]], None] | None = None,
    adapters_of: RowAdapters = SAME_ADAPTER,
) -> list[list[int]]:
    """Return the new token ids of each prompt, including the token that ended it.

    Rows share a batch only if the self-check allows it for this model, see ``safe_modes``.

    Raises:
        InputError: The model is not a causal language model.
    """
    modes = safe_modes(model)
    check_token_ids(model, prompts)
    fitting, _ = cut_to_positions(model, prompts, reserve=max_new_tokens)
    limit = position_limit(model) or 2**31
    tokens = batch_tokens or token_budget(model)
    static = modes.static and adapters_of.set_rows is None
    refilled = modes.rows == "padded" and has_plain_cache(model)

    def work(places: list[int]) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        budgets = [min(max_new_tokens, limit - len(fitting[place])) for place in places]
        for budget in dict.fromkeys(budgets):  # long rows leave fewer positions for new tokens
            here = [p for p, own in zip(places, budgets, strict=True) if own == budget]
            for part in _batchable(model, [len(fitting[place]) for place in here], modes, budget):
                own = [here[i] for i in part]
                forget_lengths(model)
                if crosses(model, len(fitting[own[0]]), budget):
                    alone = replace(modes, rows="generate"), adapters_of.part(own)
                    found[own[0]] = _decode(model, [fitting[own[0]]], stop, budget, *alone)[0]
                    continue
                batch = [fitting[place] for place in own]
                width = budget + max(map(len, batch))
                at_once = max(1, min(ROWS, tokens // max(1, width)))
                if static:
                    new = greedy_static(model, batch, stop, budget, at_once=at_once)
                elif refilled and len(batch) > at_once:
                    who = adapters_of.part(own)
                    new = greedy_refilled(model, batch, stop, budget, at_once, who)
                else:
                    new = _decode(model, batch, stop, budget, modes, adapters_of.part(own))
                found |= zip(own, new, strict=True)
        return [found[place] for place in places]

    return in_batches(
        model,
        [len(p) for p in fitting],
        work,
        budget=tokens * (REFILLS if refilled else 1),
        extra=max_new_tokens,
        label=label,
        on_done=on_done,
    )


REFILLS = 4  # batches of rows that are decoded as one batch which is refilled


def _batchable(
    model: Any, lengths: Sequence[int], modes: SafeModes, new_tokens: int
) -> list[list[int]]:
    """Group the indices of rows that may be decoded in one batch."""
    alone = [[i] for i, length in enumerate(lengths) if crosses(model, length, new_tokens)]
    others = [i for i, length in enumerate(lengths) if not crosses(model, length, new_tokens)]
    together = [[others[j] for j in group] for group in alike(model, [lengths[i] for i in others])]
    if modes.rows == "padded":
        return [*(group for group in together if group), *alone]
    if modes.rows != "equal":
        return [[place] for place in range(len(lengths))]
    groups: dict[int, list[int]] = {}
    for place in others:
        groups.setdefault(lengths[place], []).append(place)
    return [*groups.values(), *alone]


def _decode(
    model: Any,
    prompts: list[list[int]],
    stop: Sequence[int],
    max_new_tokens: int,
    modes: SafeModes,
    adapters_of: RowAdapters,
) -> list[list[int]]:
    """Decode a batch with the method that is safe for the model."""
    if modes.rows in ("padded", "equal"):
        padded = modes.rows == "padded"
        return greedy(model, prompts, stop, max_new_tokens, adapters_of, padded=padded)
    decode = model_generate if modes.rows == "generate" else uncached
    adapters_of.select([0])
    return [decode(model, prompts[0], stop, max_new_tokens)]


def stop_ids(model: Any, tokenizer: Any, template: PromptTemplate = RAW) -> list[int]:
    """Return the tokens that end a text.

    These are the EOS tokens of the generation config and of the tokenizer. In chat, the end-of-turn
    token of the template is added. Training appends one of them to each answer.
    """
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return list(dict.fromkeys([*map(int, ends), *template.stop_ids(tokenizer)]))


CPU_ROWS = 48  # batch size above which the time per row no longer falls on one core
MOST = 16  # adapters in one batch: as many as a search keeps merged


def adapters_per_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Row],
    max_new_tokens: int,
    template: PromptTemplate = RAW,
) -> int:
    """Return how many adapters' answers to the same prompts fill one batch, at least 1.

    A decoding step reads all weights, regardless of the number of rows, so additional rows are
    nearly free until the batch is full: until computing takes longer than reading the weights, or
    the memory is used up. Beyond that, unmerged adapters only add the cost of multiplying by their
    factors. ``docs/choosing.md`` has the measurements.
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
    """Generate answers greedily with several adapters in the same batches.

    The texts equal those of one adapter after the other, merged into the weights, unless two
    tokens are so close that rounding decides.

    Args:
        model: Base model without an adapter.
        prompts: Prompts of each adapter.
        on_done: Called with the index of an adapter, the index of a prompt, and the completion.

    Returns:
        Completions of each adapter, in the order of its prompts.

    Raises:
        UnfitError: The model does not support a different adapter per row.
        ResourceError: The adapters, or a single row in addition, do not fit into memory.
        Others as ``side_by_side``.
    """
    places = [(i, j) for i, own in enumerate(prompts) for j in range(len(own))]

    def keep(place: int, text: str) -> None:
        if on_done is not None:
            on_done(*places[place], text)

    safe_modes(model)  # checked before adapters are added
    with _explained(model, len(adapters)), side_by_side(model, adapters) as beside:
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
                adapters_of=RowAdapters([i for i, _ in places], beside.rows),
            )
        )
    return [[next(texts) for _ in own] for own in prompts]


@contextmanager
def _explained(model: Any, count: int) -> Iterator[None]:
    """Turn an out-of-memory error of PyTorch into a ResourceError with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"Out of memory on {model.device}: {count} adapters do not fit next to the model. "
            "Combine fewer of them in one batch with --together."
        ) from error
