"""Greedy generation in batches, for one adapter or several; equals generation row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.data.chat_template import special_ids, token_ids
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import check_token_ids, cut_to_positions, position_limit
from mergeforget.errors import InputError, ResourceError
from mergeforget.evaluate.batching import (
    ROWS,
    alike,
    crosses,
    forget_lengths,
    in_batches,
    out_of_memory,
    token_budget,
)
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.decoding import (
    SAME_ADAPTER,
    RowAdapters,
    greedy,
    greedy_refilled,
    has_plain_cache,
    model_generate,
    uncached,
)
from mergeforget.evaluate.self_check import SafeModes, safe_modes
from mergeforget.evaluate.static_decoding import greedy_static
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
    on_done: Callable[[int, Completion], None] | None = None,
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
        Answers without special tokens, except those of a row's own reference answer.

    Raises:
        InputError: The reference answer of a row contains an end token.
        NumericError: The outputs of the model are not finite.

    Source: SemEval-2025 Task 4, evaluation script, which generates row by row.
    """
    ids = [template.prompt_ids(tokenizer, prompt) for prompt in prompts]
    stop, text_stops = ends_of(model, tokenizer, template, prompts)
    answers = [""] * len(prompts)

    def keep(place: int, new: list[int]) -> None:
        completion = Completion.of(new, stop, text_stops)
        answers[place] = completion.answer(tokenizer, template, prompts[place])
        if on_done is not None:
            on_done(place, completion)

    generate_ids(
        model,
        ids,
        stop=stop,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=label,
        on_done=keep,
        adapters_of=adapters_of,
    )
    return answers


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
        NumericError: The outputs of the model are not finite.
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
    token of the template is added. Training appends one of them to each answer. EOS tokens that are
    ordinary text are left out; see ``text_stop_ids``.
    """
    text = text_stop_ids(model, tokenizer, template)
    ends = [one for one in _config_ends(model) if one not in text]
    return list(dict.fromkeys([*ends, *template.stop_ids(tokenizer)]))


def text_stop_ids(model: Any, tokenizer: Any, template: PromptTemplate = RAW) -> list[int]:
    """Return the EOS tokens of the generation config that are ordinary text, such as a line break.

    An answer may contain them, so they do not stop the generation: ``Completion`` ends an answer
    at the first one that its reference does not contain.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    markers = {int(i) for i, token in added.items() if not any(map(str.isspace, str(token)))}
    ends = markers | special_ids(tokenizer) | set(template.stop_ids(tokenizer))
    return [one for one in _config_ends(model) if one not in ends]


def _config_ends(model: Any) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return list(map(int, ends))


def ends_of(
    model: Any, tokenizer: Any, template: PromptTemplate, prompts: Sequence[str | Row]
) -> tuple[list[int], list[int]]:
    """Return the tokens that stop the generation of answers, and the text stops.

    Raises:
        InputError: The reference answer of a row contains an end token.
    """
    stop = stop_ids(model, tokenizer, template)
    own = set(template.stop_ids(tokenizer))  # checked when the row is tokenised
    further = [one for one in stop if one not in own]
    for row in prompts if further else ():
        if isinstance(row, str) or row.window:
            continue
        ids = [i for text in row.references for i in token_ids(tokenizer, text)]
        end = next((one for one in further if one in ids), None)
        if end is not None:
            raise InputError(
                f"The answer of row {row.id!r} contains {tokenizer.decode([end])!r}, which is an "
                "EOS token in the model's generation_config.json. Nothing after it would be "
                "generated, so the answer could not be found again. Remove it from the row or from "
                "eos_token_id."
            )
    return stop, text_stop_ids(model, tokenizer, template)


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
    on_done: Callable[[int, int, Completion], None] | None = None,
) -> list[list[str]]:
    """Generate answers greedily with several adapters in the same batches.

    The texts equal those of one adapter after the other, merged into the weights, unless two
    tokens are so close that rounding decides.

    Args:
        model: Base model without an adapter.
        prompts: Prompts of each adapter.
        on_done: Called with the index of an adapter, the index of a prompt, and the completion.

    Returns:
        Answers of each adapter, in the order of its prompts.

    Raises:
        UnfitError: The model does not support a different adapter per row.
        ResourceError: The adapters, or a single row in addition, do not fit into memory.
        Others as ``side_by_side``.
    """
    places = [(i, j) for i, own in enumerate(prompts) for j in range(len(own))]

    def keep(place: int, completion: Completion) -> None:
        if on_done is not None:
            on_done(*places[place], completion)

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
