"""Check whether a model isolates packed rows, and whether rows can share a common prefix.

transformers builds a block-diagonal mask from the position ids. Layers that mix tokens in
another way (state spaces, convolutions, linear attention), ALiBi and OPT ignore that mask.
transformers has no flag for it, so the model is tested.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from mergeforget.console import say
from mergeforget.data.batches import pack, share_prefix
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import sharded
from mergeforget.errors import InputError, UsageError
from mergeforget.outputs import ANSWER
from mergeforget.train.precision import autocast

_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # each model is checked once
_SHARING: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
LENGTH = 4  # tokens of a row in the check
CLOSE = 1e-4  # tolerance relative to the largest logit, for another order of summation


def rows_leak(model: Any) -> bool:
    """Return whether a packed row depends on the row before it; tested once per model.

    Args:
        model: A causal language model, with or without an adapter, not wrapped.

    Raises:
        InputError: The model is not causal.
        UsageError: Rows leak and the model is sharded: ranks would run different numbers of
            passes and wait for each other.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = f"{type(base).__name__} mixes packed rows"
    if base not in _KNOWN:
        _KNOWN[base] = _try_out(model)
        if _KNOWN[base] and not sharded():
            say(f"{name}: each row gets its own forward pass, which is slower.")
    if _KNOWN[base] and sharded():
        raise UsageError(
            f"{name}, and FSDP cannot run them one by one. Launch with --multi_gpu, or "
            "train in one process."
        )
    return _KNOWN[base]


def _try_out(model: Any) -> bool:
    """Return whether the second of two packed rows depends on the embeddings of the first.

    The gradient is exactly 0 if rows are isolated. Comparing outputs would be less exact: a
    mixture of experts rounds differently depending on the number of tokens per expert.

    Raises:
        InputError: Predictions depend on later tokens, as those of masked language models.
    """
    seen: list[torch.Tensor] = []

    def replace_input(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # CTRL scales its embeddings in place, which a leaf does not allow

    device = next(model.parameters()).device
    embedding = model.get_input_embeddings()
    ids = torch.arange(2 * LENGTH, device=device)[None] % embedding.weight.shape[0]
    positions = torch.arange(LENGTH, device=device).repeat(2)[None]
    was_training = model.training
    model.eval()
    hook = embedding.register_forward_hook(replace_input)
    try:
        with torch.enable_grad(), autocast(model):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            some = logits[:, LENGTH : LENGTH + 2]  # the second row has later tokens
            (slope,) = torch.autograd.grad(some.square().sum(), seen[0])
    finally:
        hook.remove()
        model.train(was_training)
    reads = (slope.nan_to_num(0.0) != 0).any(-1)[0]
    if reads[LENGTH + 2 :].any():
        raise InputError(
            f"{type(model).__name__} is not a causal language model: its predictions depend on "
            "later tokens. Use a decoder-only model."
        )
    return bool(reads[:LENGTH].any())


def can_share(model: Any) -> bool:
    """Return whether packed rows can share a common prefix through a mask; tested once per model.

    Always False with sliding-window or chunked attention, which the mask would replace, and with
    any attention other than SDPA. The test compares the logits of two rows packed and alone.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base not in _SHARING:
        config = base.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        windows = [getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size")]
        _SHARING[base] = (
            config._attn_implementation == "sdpa"
            and kinds == {"full_attention"}
            and not any(windows)
            and not sharded()
            and _same_when_shared(model)
        )
    return _SHARING[base]


@torch.no_grad()
def _same_when_shared(model: Any) -> bool:
    """Return whether two rows with a common prefix have the same logits packed as alone."""
    size = model.get_input_embeddings().weight.shape[0]
    rows = [[i % size for i in (1, 2, 3, 4, *ending)] for ending in ((5, 6), (7, 8, 9))]
    batch = pack([Encoded(ids=ids, kinds=[ANSWER] * len(ids)) for ids in rows])
    once = share_prefix(batch)
    assert once is not None
    was_training = model.training
    model.eval()
    try:
        with autocast(model):
            alone = [
                model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1] for ids in rows
            ]
            shared = model(
                input_ids=once.input_ids, position_ids=once.position_ids,
                attention_mask=once.mask, use_cache=False,
            ).logits[0, once.keep]  # fmt: skip
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
    ):  # the model does not accept such a mask
        return False
    finally:
        model.train(was_training)
    separate = torch.cat(alone)
    return bool((shared - separate).abs().max() <= CLOSE * separate.abs().max().clamp(min=1.0))
