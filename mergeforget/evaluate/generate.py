"""Greedy generation in batches, the same text as row by row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mergeforget.evaluate.batching import in_batches, token_budget


@dataclass(frozen=True)
class Owners:
    """Whose each prompt is, where a model is another one for each owner; by default it is not.

    Attributes:
        of: a number for each prompt.
        tell: is given the owners of the rows of the next passes.
    """

    of: Sequence[int] = ()
    tell: Callable[[list[int]], None] | None = None

    def part(self, places: Sequence[int]) -> Owners:
        """The same for some of the prompts."""
        return self if self.tell is None else Owners([self.of[i] for i in places], self.tell)

    def together(self, rows: list[int]) -> list[int]:
        """Rows of one owner beside each other, which costs a pass less."""
        return rows if self.tell is None else sorted(rows, key=self.of.__getitem__)

    def come(self, rows: Sequence[int]) -> None:
        """The next passes have these rows."""
        if self.tell is not None:
            self.tell([self.of[row] for row in rows])


ONE_OWNER = Owners()


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    batch_tokens: int | None = None,
    label: str = "Generate",
    on_done: Callable[[int, str], None] | None = None,
    owners: Owners = ONE_OWNER,
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
    owners: Owners = ONE_OWNER,
) -> list[list[int]]:
    """New token ids for each prompt, the one that ended it included."""

    def work(places: list[int]) -> list[list[int]]:
        batch = [prompts[place] for place in places]
        return greedy(model, batch, stop, max_new_tokens, owners.part(places))

    return in_batches(
        model,
        [len(p) for p in prompts],
        work,
        budget=batch_tokens or token_budget(model),
        extra=max_new_tokens,
        label=label,
        on_done=on_done,
    )


@torch.inference_mode()
def greedy(
    model: Any,
    prompts: Sequence[list[int]],
    stop: Sequence[int],
    max_new_tokens: int,
    owners: Owners = ONE_OWNER,
) -> list[list[int]]:
    """Greedy decoding of one batch; a row that has ended leaves the batch."""
    new = torch.full((len(prompts), max_new_tokens), -1, device=model.device)
    ends = torch.tensor(list(stop), device=model.device)
    last = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    if max_new_tokens:
        order, logits, cache, mask = prefill(model, prompts, last, owners)
        owners.come(order)
        rows = torch.tensor(order, device=model.device)  # those still in the batch
        positions = mask.sum(1, keepdim=True)  # of the token that comes next
    for step in range(max_new_tokens):
        chosen = logits.argmax(-1)  # (rows,)
        new[rows, step] = chosen
        going = ~torch.isin(chosen, ends)
        if step + 1 == max_new_tokens or not going.any():
            break
        if not going.all():
            kept = going.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, chosen, mask, positions = rows[kept], chosen[kept], mask[kept], positions[kept]
            owners.come(rows.tolist())
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        logits = model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last,
        ).logits[:, -1]
        positions = positions + 1
    return [[t for t in row if t >= 0] for row in new.tolist()]


def prefill(
    model: Any, prompts: Sequence[list[int]], last: dict[str, int], owners: Owners
) -> tuple[list[int], Tensor, Any, Tensor]:
    """Read the prompts, those of like length together, so that little padding is computed.

    Returns:
        The order of the rows below, as places of ``prompts``; the logits after each prompt,
        (rows, vocabulary); keys and values of all; and the mask of what in them is no padding.
    """
    read = []
    groups = like_lengths([len(p) for p in prompts]) if _plain_cache(model) else [
        list(range(len(prompts)))]  # fmt: skip
    groups = [owners.together(group) for group in groups]
    for group in groups:
        owners.come(group)
        ids, mask = pad_left([prompts[i] for i in group], model.device)
        cache = DynamicCache(config=model.config)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            **last,
        ).logits[:, -1]
        read.append((logits, cache, mask))
    order = [place for group in groups for place in group]
    logits, mask = torch.cat([r[0] for r in read]), _side_by_side([r[2] for r in read], dim=1)
    return order, logits, _joined([r[1] for r in read], model.config), mask


def like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Places by length, from the longest; in a group none is shorter by more than a quarter.

    Differences of up to 16 tokens do not part rows: a further pass costs more than they do.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[groups[-1][0]] if groups else 0
        if not groups or longest - lengths[place] > max(16, longest // 4):
            groups.append([])
        groups[-1].append(place)
    return groups


def _plain_cache(model: Any) -> bool:
    """Whether all layers keep keys and values of every token, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _joined(caches: list[Any], config: Any) -> Any:
    """One cache of all rows; a group's own is freed layer by layer."""
    if len(caches) == 1:
        return caches[0]
    data = []
    for number in range(len(caches[0].layers)):
        layers = [cache.layers[number] for cache in caches]
        data.append(tuple(_side_by_side([getattr(x, n) for x in layers], dim=2)
                          for n in ("keys", "values")))  # fmt: skip
        for layer in layers:
            layer.keys = layer.values = None
    return DynamicCache(ddp_cache_data=data, config=config)


def _side_by_side(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Rows of all parts, with zeros before those that are shorter along ``dim``."""
    longest = max(part.shape[dim] for part in parts)
    padded = []
    for part in parts:
        before = [0, 0] * (part.dim() - 1 - dim) + [longest - part.shape[dim], 0]
        padded.append(F.pad(part, before))
    return torch.cat(padded)


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
