"""Greedy decoding of one batch with a cache, padded or not, or without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from mergeforget.errors import NumericError
from mergeforget.evaluate.batching import little_padding

NOT_FINITE = (
    "The outputs of the model are not numbers: its weights contain NaN or Inf, or overflow in its "
    "dtype. Load it in float32, or train it again with a smaller learning rate."
)
Pick = Callable[[Tensor, list[int]], Tensor]  # logits (rows, vocabulary), rows -> (rows,) tokens


@dataclass(frozen=True)
class RowAdapters:
    """The adapter of each prompt, for a model that applies another adapter to each row.

    Attributes:
        index: Number of the adapter of each prompt; empty if all rows use the same model.
        set_rows: Called before a forward pass with the adapter numbers of its rows.
    """

    index: Sequence[int] = ()
    set_rows: Callable[[list[int]], None] | None = None

    def part(self, places: Sequence[int]) -> RowAdapters:
        """Return the adapters of some of the prompts."""
        if self.set_rows is None:
            return self
        return RowAdapters([self.index[i] for i in places], self.set_rows)

    def sorted(self, rows: list[int]) -> list[int]:
        """Return the rows sorted by adapter, so that each adapter is multiplied once per pass."""
        return rows if self.set_rows is None else sorted(rows, key=self.index.__getitem__)

    def select(self, rows: Sequence[int]) -> None:
        """Set the adapters of the rows of the next forward passes."""
        if self.set_rows is not None:
            self.set_rows([self.index[row] for row in rows])


SAME_ADAPTER = RowAdapters()


def most_likely(logits: Tensor, rows: list[int]) -> Tensor:
    """Return the token with the largest logit of each row."""
    return logits.argmax(-1)


def check_finite(logits: Tensor) -> None:
    """Raise NumericError for a row of logits without a largest number.

    Its completion would be arbitrary, and could be mistaken for that of a model that forgot.

    Args:
        logits: (rows, vocabulary); single tokens may be excluded with ``-inf``.
    """
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise NumericError(NOT_FINITE)


def finite_logits() -> LogitsProcessorList:
    """Return a processor for ``model.generate`` that calls ``check_finite`` before each token."""

    def check(input_ids: Tensor, logits: Tensor) -> Tensor:
        check_finite(logits)
        return logits

    return LogitsProcessorList([check])


@torch.inference_mode()
def greedy(
    model: Any,
    prompts: Sequence[list[int]],
    stop: Sequence[int],
    max_new_tokens: int,
    adapters_of: RowAdapters = SAME_ADAPTER,
    *,
    padded: bool = True,
    pick: Pick = most_likely,
) -> list[list[int]]:
    """Decode one batch with a cache; finished rows are removed from the batch.

    Args:
        prompts: Token ids of each row; all of the same length if ``padded`` is false.
        stop: Tokens that end a row.
        padded: Pad prompts of different lengths on the left and pass an attention mask and
            positions to the model. Otherwise pass the token ids alone.
        pick: Function that selects the next token of each row.

    Returns:
        New token ids of each row, including the token that ended it.

    Raises:
        NumericError: The logits are not finite.
    """
    new = torch.full((len(prompts), max_new_tokens), -1, device=model.device)
    ends = torch.tensor(list(stop), device=model.device)
    last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    if max_new_tokens:
        order, logits, cache, mask = prefill(model, prompts, last, adapters_of, padded=padded)
        adapters_of.select(order)
        rows = torch.tensor(order, device=model.device)  # those still in the batch
        positions = mask.sum(1, keepdim=True)  # of the token that comes next
    for step in range(max_new_tokens):
        check_finite(logits)
        chosen = pick(logits, rows.tolist())  # (rows,)
        new[rows, step] = chosen
        unfinished = ~torch.isin(chosen, ends)
        if step + 1 == max_new_tokens or not unfinished.any():
            break
        if not unfinished.all():
            remaining = unfinished.nonzero().squeeze(1)
            cache.reorder_cache(remaining)
            rows, chosen, mask, positions = (
                rows[remaining],
                chosen[remaining],
                mask[remaining],
                positions[remaining],
            )
            adapters_of.select(rows.tolist())
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        places = places_of(model, mask, positions) if padded else {}
        logits = cached_pass(model, chosen[:, None], cache, **places, **last)
        positions = positions + 1
    return [[t for t in row if t >= 0] for row in new.tolist()]


@torch.inference_mode()
def greedy_refilled(
    model: Any,
    prompts: Sequence[list[int]],
    stop: Sequence[int],
    max_new_tokens: int,
    at_once: int,
    adapters_of: RowAdapters = SAME_ADAPTER,
    *,
    pick: Pick = most_likely,
) -> list[list[int]]:
    """Decode rows with a cache; waiting prompts take the places of finished rows.

    A pass reads all weights, regardless of the number of rows, so a batch that stays full needs
    fewer passes than one batch after the other. New prompts are processed when a quarter of the
    places is free. The model must have a plain cache, see ``has_plain_cache``.

    Args:
        prompts: Token ids of each row; similar lengths should follow each other.
        at_once: Largest number of rows in a pass.
        pick: Function that selects the next token of each row.

    Returns:
        As ``greedy``.
    """
    last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    new: list[list[int]] = [[] for _ in prompts]
    waiting = list(range(len(prompts))) if max_new_tokens else []
    rows: list[int] = []  # in the batch
    cache: Any = None
    mask: Any = None
    logits: Any = None
    while rows or waiting:
        if waiting and len(rows) <= at_once * 3 // 4:
            taken, waiting = waiting[: at_once - len(rows)], waiting[at_once - len(rows) :]
            chosen_prompts = [prompts[i] for i in taken]
            order, *fresh = prefill(model, chosen_prompts, last, adapters_of.part(taken))
            if not rows:
                logits, cache, mask = fresh
            else:
                unused = int((mask.cumsum(1) == 0).all(0).sum())
                mask = _side_by_side([mask[:, unused:], fresh[2]], dim=1)
                logits = torch.cat([logits, fresh[0]])
                cache = _joined([_without_start(cache, unused), fresh[1]], model)
            rows += [taken[place] for place in order]
            adapters_of.select(rows)
        check_finite(logits)
        chosen = pick(logits, rows)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            new[row].append(token)
        remaining = [
            place
            for place, row in enumerate(rows)
            if new[row][-1] not in stop and len(new[row]) < max_new_tokens
        ]
        if len(remaining) < len(rows):
            rows = [rows[place] for place in remaining]
            if not rows:
                continue
            places = torch.tensor(remaining, device=model.device)
            cache.reorder_cache(places)
            chosen, mask = chosen[places], mask[places]
            adapters_of.select(rows)
        positions = mask.sum(1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        at = places_of(model, mask, positions)
        logits = cached_pass(model, chosen[:, None], cache, **at, **last)
    return new


def _without_start(cache: Any, count: int) -> Any:
    """Remove the first positions of a cache, which are padding in every row."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, count:], layer.values[:, :, count:]
    return cache


def prefill(
    model: Any,
    prompts: Sequence[list[int]],
    last: dict[str, int],
    adapters_of: RowAdapters,
    *,
    padded: bool = True,
) -> tuple[list[int], Tensor, Any, Tensor]:
    """Process the prompts in groups of similar length, to keep padding small.

    Returns:
        The order of the rows in the other results, as indices of ``prompts``; the logits after
        each prompt, (rows, vocabulary); the cache of all rows; and its attention mask.
    """
    read = []
    groups = similar_lengths([len(p) for p in prompts]) if padded and has_plain_cache(model) else [
        list(range(len(prompts)))]  # fmt: skip
    groups = [adapters_of.sorted(group) for group in groups]
    for group in groups:
        adapters_of.select(group)
        ids, mask = pad_left([prompts[i] for i in group], model.device)
        places = places_of(model, mask, (mask.cumsum(1) - 1).clamp(min=0)) if padded else {}
        cache = new_cache(model)
        read.append((cached_pass(model, ids, cache, **places, **last), cache, mask))
    order = [place for group in groups for place in group]
    logits, mask = torch.cat([r[0] for r in read]), _side_by_side([r[2] for r in read], dim=1)
    return order, logits, _joined([r[1] for r in read], model), mask


@torch.inference_mode()
def uncached(
    model: Any, prompt: Sequence[int], stop: Sequence[int], max_new_tokens: int
) -> list[int]:
    """Decode one row greedily without a cache, with a full forward pass per token."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        logits = full_pass(model, torch.tensor([ids], device=model.device))[0, -1:]
        check_finite(logits)
        ids.append(int(logits.argmax()))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


@torch.inference_mode()
def model_generate(
    model: Any, prompt: Sequence[int], stop: Sequence[int], max_new_tokens: int
) -> list[int]:
    """Decode one row greedily with the model's own ``generate``."""
    if not max_new_tokens:
        return []
    ids = torch.tensor([list(prompt)], device=model.device)
    settings = {"eos_token_id": list(stop) or None, "max_new_tokens": max_new_tokens}
    with plain_generation(model, **settings):
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=finite_logits()
        )
    return list(output[0, len(prompt) :].tolist())


@torch.inference_mode()
def model_generate_logits(
    model: Any, prompt: Sequence[int], max_new_tokens: int
) -> tuple[list[int], Tensor]:
    """Return the tokens of ``model_generate`` and the logits of each, (tokens, vocabulary)."""
    ids = torch.tensor([list(prompt)], device=model.device)
    options = {"max_new_tokens": max_new_tokens, "return_dict_in_generate": True}
    with plain_generation(model, output_logits=True, **options):
        output = model.generate(ids, attention_mask=torch.ones_like(ids))
    return output.sequences[0, len(prompt) :].tolist(), torch.stack(output.logits)[:, 0]


@contextmanager
def plain_generation(model: Any, **settings: Any) -> Iterator[None]:
    """Use a generation config of these settings alone in the block.

    That of the model may suppress tokens of an answer, forbid repetitions or force tokens.
    """
    inner = without_peft(model)
    before = inner.generation_config
    inner.generation_config = GenerationConfig(pad_token_id=0, use_cache=True, **settings)
    try:
        yield
    finally:
        inner.generation_config = before


@torch.inference_mode()
def cached_prefix_logits(model: Any, rows: Sequence[list[int]], shared: int) -> Tensor:
    """Return the logits after each row, (rows, vocabulary); a shared prefix is processed once.

    Args:
        shared: Length of the prefix that all rows share, less than the shortest row. With 0 nothing
            is cached. The rest of each row is padded on the right, which a causal model ignores.
    """
    ids, mask = pad_right([row[shared:] for row in rows], model.device)
    inputs: dict[str, Any] = {}
    if shared:
        cache = new_cache(model)
        prefix = torch.tensor([rows[0][:shared]], device=model.device)
        cached_pass(model, prefix, cache)
        cache.batch_repeat_interleave(len(rows))
        mask = torch.cat([mask.new_ones(len(rows), shared), mask], 1)
        inputs = {cache_name(model): cache, "use_cache": True}
    elif takes(model, "use_cache"):
        inputs = {"use_cache": False}
    if takes(model, "attention_mask"):
        inputs["attention_mask"] = mask
    wanted = mask[:, shared:].sum(1) - 1  # (rows,) the last token of each row
    places = torch.arange(ids.shape[1], device=model.device)
    if takes(model, "logits_to_keep"):
        places = wanted.unique()
        inputs["logits_to_keep"] = places
    logits: Tensor = model(input_ids=ids, **inputs).logits  # (rows, places, vocabulary)
    return logits[torch.arange(len(rows)), torch.searchsorted(places, wanted)]


def full_pass(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """Return the logits of every position, (rows, tokens, vocabulary), without using a cache."""
    uncached_by = {"use_cache": False} if takes(model, "use_cache") else {}
    logits: Tensor = model(input_ids=ids, **uncached_by, **inputs).logits
    return logits


def cached_pass(model: Any, ids: Tensor, cache: Any, **inputs: Any) -> Tensor:
    """Return the logits after the last token of each row, (rows, vocabulary); extends the cache."""
    inputs = {cache_name(model): cache, "use_cache": True, **inputs}
    logits: Tensor = model(input_ids=ids, **inputs).logits[:, -1]
    return logits


def places_of(model: Any, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Return the attention mask and the positions, if the model accepts them."""
    given = {"attention_mask": mask, "position_ids": positions}
    return {name: value for name, value in given.items() if takes(model, name)}


def cache_name(model: Any) -> str:
    """Return the name of the cache argument.

    It is ``past_key_values``, ``cache`` from transformers 5.24 on, and ``cache_params`` in Mamba
    and related models.
    """
    names = ("past_key_values", "cache", "cache_params")
    return next((name for name in names if takes(model, name)), names[-1])


def new_cache(model: Any) -> Any:
    """Return an empty cache with the right kind of cache layer for each layer of the model."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def has_plain_cache(model: Any) -> bool:
    """Return whether every layer caches the keys and values of all tokens, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in new_cache(model).layers)


def takes(model: Any, argument: str) -> bool:
    """Return whether the model's ``forward`` has an argument of this name."""
    return argument in inspect.signature(type(without_peft(model)).forward).parameters


def without_peft(model: Any) -> Any:
    """Return the model without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def similar_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Group indices by length, longest first, so that each group needs little padding."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or not little_padding(lengths[place], lengths[groups[-1][0]]):
            groups.append([])
        groups[-1].append(place)
    return groups


def pad_left(prompts: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, (rows, longest), padded with token 0 on the left."""
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids.to(device), mask.to(device)


def pad_right(texts: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, (rows, longest), padded with token 0 on the right."""
    longest = max(len(t) for t in texts)
    ids = torch.tensor([t + [0] * (longest - len(t)) for t in texts])
    mask = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in texts])
    return ids.to(device), mask.to(device)


def _joined(caches: list[Any], model: Any) -> Any:
    """Concatenate caches along the rows; the memory of the parts is freed layer by layer."""
    if len(caches) == 1:
        return caches[0]
    data = []
    for number in range(len(caches[0].layers)):
        layers = [cache.layers[number] for cache in caches]
        data.append(tuple(_side_by_side([getattr(x, n) for x in layers], dim=2)
                          for n in ("keys", "values")))  # fmt: skip
        for layer in layers:
            layer.keys = layer.values = None
    return DynamicCache(ddp_cache_data=data, config=model.config.get_text_config(decoder=True))


def _side_by_side(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate rows, and pad shorter parts with zeros at the beginning of ``dim``."""
    longest = max(part.shape[dim] for part in parts)
    padded = []
    for part in parts:
        before = [0, 0] * (part.dim() - 1 - dim) + [longest - part.shape[dim], 0]
        padded.append(F.pad(part, before))
    return torch.cat(padded)
