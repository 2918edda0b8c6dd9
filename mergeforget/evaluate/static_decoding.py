"""Greedy decoding with a cache of fixed size, whose passes a GPU replays as a CUDA graph.

A decoding pass of a small model consists of a thousand short kernels, and launching them takes
longer than running them. With tensors of fixed shapes and addresses, the kernels of a pass are
recorded once per batch and launched together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StaticCache

from mergeforget.evaluate.decoding import (
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
    check_every: int = CHECK_EVERY,
    pick: Pick = most_likely,
) -> list[list[int]]:
    """Decode one batch with a static cache.

    Finished rows stay in the batch until half of its rows are finished.

    Args:
        prompts: Token ids of each row.
        stop: Tokens that end a row.
        check_every: Number of new tokens between two checks for finished rows.
        pick: Function that selects the next token of each row.

    Returns:
        New token ids of each row, including the token that ended it.
    """
    if not max_new_tokens:
        return [[] for _ in prompts]
    last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    new = torch.full((len(prompts), max_new_tokens), -1, device=model.device)
    ends = torch.tensor(list(stop), device=model.device)
    rows, logits, cache, mask = prefill(model, prompts, last, SAME_ADAPTER)
    places = torch.tensor(rows, device=model.device)
    passes = _StaticPasses(model, cache, mask, max_new_tokens - 1, last)
    finished = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
    for step in range(max_new_tokens):
        chosen = pick(logits, rows)  # (rows,)
        new[places, step] = chosen
        finished |= torch.isin(chosen, ends)
        if step + 1 == max_new_tokens:
            break
        if (step + 1) % check_every == 0:
            left = (~finished).nonzero().squeeze(1)
            if not len(left):
                break
            if len(left) <= len(rows) // 2:
                passes = passes.select(left)
                rows = [rows[i] for i in left.tolist()]
                places, chosen, finished = places[left], chosen[left], finished[left]
        logits = passes.run(chosen)
    return [_answer(row, stop) for row in new.tolist()]


def _answer(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """Return the tokens up to the first that ends the row; -1 marks an unused place."""
    for count, token in enumerate(tokens, 1):
        if token in stop:
            return tokens[:count]
    return [token for token in tokens if token >= 0]


class _StaticPasses:
    """Decoding passes of a batch on buffers of fixed shapes and addresses.

    Args:
        cache: A dynamic cache of the prompts; its memory is freed.
        mask: Attention mask of the prompts, (rows, tokens).
        room: Number of passes that follow.
        last: Arguments that limit the logits to the last position.
    """

    def __init__(
        self, model: Any, cache: Any, mask: Tensor, room: int, last: dict[str, int]
    ) -> None:
        self.model, self.room, self.last, self.seen = model, room, last, mask
        self.place = mask.shape[1]  # of the next token in the cache
        capacity = -(-(self.place + room) // ROUNDING) * ROUNDING
        self.cache = _static_cache(model, cache, capacity)
        # complete masks, because building one reads values on the device
        self.mask = F.pad(mask, (0, capacity - self.place)).bool()[:, None, None]
        self.positions = mask.sum(1, keepdim=True)
        self.ids = torch.zeros_like(self.positions)
        self.logits: Tensor | None = None
        self.graph: Any = None

    def run(self, tokens: Tensor) -> Tensor:
        """Append a token to each row, (rows,), and return the logits after it."""
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
        self.positions += 1
        self.place, self.room = self.place + 1, self.room - 1
        return self.logits.clone()

    def select(self, rows: Tensor) -> _StaticPasses:
        """Return the passes of some rows."""
        mask = self.mask[rows, 0, 0, : self.place].long()
        for layer in self.cache.layers:
            layer.keys = layer.keys[rows, :, : self.place]
            layer.values = layer.values[rows, :, : self.place]
        return _StaticPasses(self.model, self.cache, mask, self.room, self.last)

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
