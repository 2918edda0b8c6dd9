"""Greedy generation in batches, the same text as row by row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeforget.evaluate.batching import in_batches, token_budget


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    batch_tokens: int | None = None,
    label: str = "Generate",
    on_done: Callable[[int, str], None] | None = None,
) -> list[str]:
    """What the model writes after each prompt, greedily, until it ends the text by itself.

    The prompt goes in as it is, with the tokenizer's own special tokens, no chat template and
    nothing cut off; the completion comes back without special tokens.

    Args:
        batch_tokens: prompt and new tokens of a batch; by default what the memory allows.
        on_done: is given each row's place and completion as soon as its batch is done.

    Source: SemEval-2025 Task 4, evaluation script, which does a row at a time.
    """
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    completions = [""] * len(prompts)

    def keep(place: int, new: list[int]) -> None:
        completions[place] = str(tokenizer.decode(new, skip_special_tokens=True))
        if on_done is not None:
            on_done(place, completions[place])

    generate_ids(
        model,
        ids,
        stop=stop_ids(model, tokenizer),
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=label,
        on_done=keep,
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
) -> list[list[int]]:
    """New token ids for each prompt, the one that ended it included."""
    return in_batches(
        model,
        [len(p) for p in prompts],
        lambda places: greedy(model, [prompts[i] for i in places], stop, max_new_tokens),
        budget=batch_tokens or token_budget(model),
        extra=max_new_tokens,
        label=label,
        on_done=on_done,
    )


@torch.inference_mode()
def greedy(
    model: Any, prompts: Sequence[list[int]], stop: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy decoding of one batch, padded on the left; a row that has ended leaves the batch."""
    from transformers import DynamicCache

    ids, mask = pad_left(prompts, model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ends = torch.tensor(list(stop), device=model.device)
    cache = DynamicCache(config=model.config)
    last = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    new = torch.full((len(prompts), max_new_tokens), -1, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)  # those still in the batch
    for step in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last,
        ).logits
        chosen = logits[:, -1].argmax(-1)  # (rows,)
        new[rows, step] = chosen
        going = ~torch.isin(chosen, ends)
        if not going.all():
            if not going.any():
                break
            kept = going.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, chosen, mask, positions = rows[kept], chosen[kept], mask[kept], positions[kept]
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    return [[t for t in row if t >= 0] for row in new.tolist()]


def pad_left(prompts: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (rows, longest); what fills up is token 0, never attended."""
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids.to(device), mask.to(device)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the model's own, else the tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = tokenizer.eos_token_id
    return [] if ends is None else [int(e) for e in (ends if isinstance(ends, list) else [ends])]


def takes_logits_to_keep(model: Any) -> bool:
    """Whether the model can leave out the logits of all positions but the last."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
