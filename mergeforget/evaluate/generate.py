"""Greedy generation in batches: the same text as row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mergeforget.data.positions import check_token_ids, cut_to_positions, position_limit
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.evaluate.batching import in_batches, token_budget
from mergeforget.evaluate.decoding import (
    ONE_OWNER,
    RowOwners,
    greedy,
    model_generate,
    uncached,
)
from mergeforget.evaluate.self_check import SafeWays, safe_ways


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
