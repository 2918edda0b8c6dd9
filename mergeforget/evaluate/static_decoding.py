"""Greedy decoding with a cache of fixed size, whose passes a GPU replays as a CUDA graph.

A decoding pass of a small model consists of a thousand short kernels, and launching them takes
longer than running them. With tensors of fixed shapes and addresses, the kernels of a pass are
recorded once per batch and launched together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StaticCache

from mergeforget.errors import NumericError
from mergeforget.evaluate.decoding import (
    NOT_FINITE,
    SAME_ADAPTER,
    Pick,
    cached_pass,
    most_likely,
    places_of,
    prefill,
    takes,
    without_peft,
)
from mergeforget.models import CACHE

CHECK_EVERY = 8  # new tokens between two checks for finished rows; each waits for the device
ROUNDING = 64  # the size of a cache is a multiple of this number of tokens


def wants_static_cache(model: Any) -> bool:
    """Return whether a model decodes with a static cache if its outputs are the same.

    With ``model.cache: auto``, a model on a single GPU does.
    """
    chosen = getattr(without_peft(model), CACHE, "dynamic")
    if chosen == "auto":
        devices = set((getattr(without_peft(model), "hf_device_map", None) or {}).values())
        return bool(model.device.type == "cuda" and len(devices) < 2)
    return bool(chosen == "static")


@torch.inference_mode()
def greedy_static(
    model: Any,
    prompts: Sequence[list[int]],
    stop: Sequence[int],
    max_new_tokens: int,
    *,
    at_once: int | None = None,
    check_every: int = CHECK_EVERY,
    pick: Pick = most_likely,
) -> list[list[int]]:
    """Decode rows with a static cache; waiting prompts take the places of finished rows.

    New prompts are processed when a quarter of the places is free. Their keys and values are
    copied into the buffers of the batch, so a CUDA graph remains valid. When no prompt is waiting,
    finished rows stay in the batch until half of its rows are finished.

    Args:
        prompts: Token ids of each row; similar lengths should follow each other.
        stop: Tokens that end a row.
        at_once: Largest number of rows in a pass; all by default.
        check_every: Number of new tokens between two checks for finished rows.
        pick: Function that selects the next token of each row.

    Returns:
        New token ids of each row, including the token that ended it.

    Raises:
        NumericError: The logits of an unfinished row are not finite.
    """
    if not max_new_tokens:
        return [[] for _ in prompts]
    last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    device, total = model.device, len(prompts)
    # the last column takes what finished rows write
    new = torch.full((total, max_new_tokens + 1), -1, device=device)
    ends = torch.tensor(list(stop), device=device)
    waiting = list(range(at_once or total, total))
    rows, logits, cache, mask = prefill(model, prompts[: at_once or total], last, SAME_ADAPTER)
    length = max(map(len, prompts)) + max_new_tokens
    passes = _StaticPasses(model, cache, mask, length, last)
    places = torch.tensor(rows, device=device)
    counts, finished = torch.zeros_like(places), torch.zeros_like(places, dtype=torch.bool)
    finite = torch.tensor(True, device=device)
    checks = {max_new_tokens}  # the steps at which rows reach the limit
    for step in itertools.count(1):
        finite &= (finished | torch.isfinite(logits.amax(-1))).all()
        chosen = pick(logits, rows)  # (rows,)
        new[places, counts] = chosen
        counts = (counts + 1).clamp(max=max_new_tokens)
        finished |= torch.isin(chosen, ends) | (counts == max_new_tokens)
        free: list[int] = []
        if step % check_every == 0 or step in checks:
            if not finite:
                raise NumericError(NOT_FINITE)
            free = finished.nonzero().squeeze(1).tolist()
            if not waiting and len(free) == len(rows):
                break
            if not waiting and len(free) >= len(rows) / 2:
                left = (~finished).nonzero().squeeze(1)
                passes.select(left)
                rows = [rows[i] for i in left.tolist()]
                places, chosen, counts = places[left], chosen[left], counts[left]
                finished, free = finished[left], []
        if len(free) < len(rows):
            logits = passes.run(chosen)
        if waiting and len(free) >= len(rows) / 4:
            taken, waiting = waiting[: len(free)], waiting[len(free) :]
            order, fresh, *read = prefill(model, [prompts[i] for i in taken], last, SAME_ADAPTER)
            at = torch.tensor(free[: len(taken)], device=device)
            passes.refill(at, *read)
            for place, number in zip(free, order, strict=False):
                rows[place] = taken[number]
            logits = logits.index_copy(0, at, fresh)
            counts[at], finished[at] = 0, False
            places = torch.tensor(rows, device=device)
            checks.add(step + max_new_tokens)
    return [_answer(row[:max_new_tokens], stop) for row in new.tolist()]


def _answer(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """Return the tokens up to the first that ends the row; -1 marks an unused place."""
    for count, token in enumerate(tokens, 1):
        if token in stop:
            return tokens[:count]
    return [token for token in tokens if token >= 0]


class _StaticPasses:
    """Decoding passes of a batch on buffers of fixed shapes and addresses.

    All rows write to the same place of the cache, which continues at the start after its end. The
    mask of a row shows which places belong to it, so their order is irrelevant.

    Args:
        cache: A dynamic cache of the prompts; its memory is freed.
        mask: Attention mask of the prompts, (rows, tokens).
        length: Largest number of tokens of a row, including the new ones.
        last: Arguments that limit the logits to the last position.
    """

    def __init__(
        self, model: Any, cache: Any, mask: Tensor, length: int, last: dict[str, int]
    ) -> None:
        self.model, self.last, self.length = model, last, length
        self.place = mask.shape[1]  # of the next token in the cache
        self.capacity = -(-length // ROUNDING) * ROUNDING
        self.cache = _static_cache(model, cache, self.capacity)
        # complete masks, because building one reads values on the device
        self.mask = F.pad(mask, (0, self.capacity - self.place)).bool()[:, None, None]
        self.positions = mask.sum(1, keepdim=True)
        self.ids = torch.zeros_like(self.positions)
        self.logits: Tensor | None = None
        self.graph: Any = None

    def run(self, tokens: Tensor) -> Tensor:
        """Append a token to each row, (rows,), and return the logits after it."""
        if self.place == self.capacity:
            self.place = 0
            for layer in self.cache.layers:
                layer.cumulative_length.zero_()
        self.ids.copy_(tokens[:, None])
        self.mask[..., self.place] = True
        on_gpu = self.ids.device.type == "cuda"
        if on_gpu and self.logits is not None and self.graph is None:  # after one pass without it
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = self._forward()
        if self.graph is not None:
            self.graph.replay()
        else:
            self.logits = self._forward()
        assert self.logits is not None
        # finished rows continue, but not beyond the last position that the model knows
        self.positions.add_(1).clamp_(max=self.length - 1)
        self.place += 1
        return self.logits.clone()

    def select(self, rows: Tensor) -> None:
        """Keep some rows, in new and smaller buffers."""
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.ids, self.logits, self.graph = self.ids[rows], None, None

    def refill(self, rows: Tensor, cache: Any, mask: Tensor) -> None:
        """Replace some rows by prompts, whose keys and values end before the next place.

        Args:
            rows: Indices of the rows that are replaced, (prompts,).
            cache, mask: As those of the class, of the prompts alone.
        """
        before = torch.arange(-mask.shape[1], 0, device=mask.device)
        at = rows[:, None], (self.place + before) % self.capacity  # (prompts, tokens)
        for to, source in zip(self.cache.layers, cache.layers, strict=True):
            to.keys.transpose(1, 2)[at] = source.keys.transpose(1, 2)
            to.values.transpose(1, 2)[at] = source.values.transpose(1, 2)
            source.keys = source.values = None
        self.mask[rows] = False
        self.mask[:, 0, 0][at] = mask.bool()
        self.positions[rows] = mask.sum(1, keepdim=True)

    def _forward(self) -> Tensor:
        given = places_of(self.model, self.mask, self.positions)
        return cached_pass(self.model, self.ids, self.cache, **given, **self.last)


def _static_cache(model: Any, cache: Any, capacity: int) -> Any:
    """Copy a cache into one with room for ``capacity`` tokens, and free its memory by layer."""
    static: Any = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=capacity)
    for to, source in zip(static.layers, cache.layers, strict=True):
        keys, values = source.keys, source.values
        source.keys = source.values = None
        to.update(keys, values)
    return static
