"""Determines which optimisations leave the outputs of a model unchanged.

Batches are faster than single rows, but padding, an unusual cache, or a row that leaves the batch
changes the outputs of some architectures, and their configuration does not state this. Before a
model is first measured, short texts are therefore processed alone and without a cache, which
defines the correct logits, and then with each optimisation. The fastest mode with the same logits
is used; a message reports a slower one.

A model in half precision is checked twice: in float32, where the logits must agree up to float32
rounding, and in its own precision, where a batched row may be at most ``RATIO`` times as far from
the float32 logits as the same row alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mergeforget.console import quiet, say
from mergeforget.errors import InputError, first_line
from mergeforget.evaluate.decoding import (
    cached_prefix_logits,
    full_pass,
    greedy,
    has_plain_cache,
    model_generate_logits,
    pad_right,
    takes,
    without_peft,
)
from mergeforget.evaluate.float32_pass import HALF, in_float32
from mergeforget.evaluate.static_decoding import greedy_static, wants_static_cache

Rows = Literal["padded", "equal", "generate", "uncached"]
NEW = 4  # tokens that each probe decodes
LARGEST_WINDOW = 256  # tokens; probes are longer than windows and selected keys up to this size
EXACT = 1e-3  # allowed error of logits in float32, relative to their spread
RATIO = 4  # allowed error in half precision, relative to the rounding error of a single row
LARGEST = 0.1  # maximum allowed error if the model cannot be computed in float32


@dataclass(frozen=True)
class SafeModes:
    """Optimisations that are safe for a model.

    Attributes:
        rows: How answers are decoded. ``padded``: rows of all lengths in one batch; ``equal``: rows
            of equal length in one batch; ``generate``: each row with the model's own ``generate``;
            ``uncached``: each row with a full forward pass per token.
        scored_together: Whether likelihoods may be computed for right-padded rows in one pass.
        prefix: Whether rows with a common prefix may share its cache.
        static: Whether answers are decoded with a static cache; only where the model asks for it.
    """

    rows: Rows = "padded"
    scored_together: bool = True
    prefix: bool = True
    static: bool = False


_KNOWN: WeakKeyDictionary[Any, tuple[str, SafeModes]] = WeakKeyDictionary()  # checked once


def safe_modes(model: Any) -> SafeModes:
    """Check a model before it is first measured; the result is cached.

    Args:
        model: A causal language model, with or without an adapter.

    Raises:
        InputError: A prediction depends on later tokens, or the model cannot be called with token
            ids alone.
    """
    base = without_peft(model)
    static = wants_static_cache(model)
    precision = f"{base.dtype} {getattr(base.config, '_attn_implementation', '')} {static}"
    if _KNOWN.get(base, ("",))[0] != precision:
        training = model.training
        model.eval()
        try:
            found = _check(model)
        finally:
            model.train(training)
        if found is None:  # the outputs are not finite; the measurement raises an error
            return SafeModes()
        _KNOWN[base] = precision, found
        if text := _slow_path(found, static):
            say(f"{type(base).__name__}: {text}")
    return _KNOWN[base][1]


def _slow_path(modes: SafeModes, static: bool) -> str:
    """Describe modes that are slower than the default; empty for the default.

    Args:
        static: Whether a static cache is wanted.
    """
    answers = {
        "padded": "",
        "equal": "padding changes its answers, so only prompts of one length share a batch",
        "generate": "a batch changes its answers, or this cannot be checked, so model.generate "
        "writes them row by row",
        "uncached": "its cache changes its answers, or this cannot be checked, so every new token "
        "takes a full pass",
    }[modes.rows]
    scores = "" if modes.scored_together else "likelihoods are computed row by row"
    dynamic = static and modes.rows == "padded" and not modes.static
    cache = "a static cache changes its answers, or it has none, so its cache grows"
    parts = [part for part in (answers, scores, cache if dynamic else "") if part]
    return "; ".join(parts) + " (slower)." if parts else ""


@torch.inference_mode()
def _check(model: Any) -> SafeModes | None:
    probes = _Probes.of(model)
    try:
        truth = probes.logits(model)
    except Exception as error:
        raise InputError(
            f"{_name(model)} cannot be evaluated: a forward pass with token ids alone fails "
            f"({first_line(error)[:200]}). Only causal language models of text are supported."
        ) from error
    if not all(bool(torch.isfinite(logits).all()) for logits in truth):
        return None
    stages = _stages(model, probes, truth)
    coarse = _Stage(truth, LARGEST, typical=True)
    if not any(s.holds(model, partial(_is_causal, model, probes)) for s in stages or [coarse]):
        raise InputError(
            f"{_name(model)} is not a causal language model: its predictions depend on later "
            "tokens, so its answers and likelihoods would be meaningless. Use a decoder-only model."
        )

    if not stages:
        return SafeModes("uncached", scored_together=False, prefix=False)

    def works(way: Callable[..., bool], *details: Any) -> bool:
        return all(s.holds(model, partial(way, model, probes, *details)) for s in stages)

    alone = _selected_keys(model) > LARGEST_WINDOW  # no probe is long enough to drop a key
    rows: Rows = "uncached"
    if not alone and works(_decodes, 0, True):
        rows = "padded"
    else:
        own = _generates(model, probes, stages)
        if own is False:
            raise InputError(
                f"{_name(model)} cannot be evaluated: model.generate and a forward pass over the "
                "same tokens disagree, so it is unclear which output its users would see."
            )
        if not alone and works(_decodes, 2, False):
            rows = "equal"
        elif own:
            rows = "generate"
    plain = rows == "padded" and has_plain_cache(model)
    static = plain and wants_static_cache(model) and works(_decodes_static)
    return SafeModes(rows, not alone and works(_scores), plain and works(_continues), static)


@dataclass(frozen=True)
class _Probes:
    """Three random texts: a short one and two long ones of equal length.

    Attributes:
        texts: Token ids. ``end`` is the second of the last ``NEW`` tokens of the first and third
            texts, and does not occur elsewhere.
    """

    texts: list[list[int]]
    end: int

    @classmethod
    def of(cls, model: Any) -> _Probes:
        config = model.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None) or 0
        window = window if isinstance(window, int) and window <= LARGEST_WINDOW else 0
        size = model.get_input_embeddings().weight.shape[0]
        named = [v for k, v in vars(config).items() if k.endswith("_token_id")]
        special = {i for v in named for i in (v if isinstance(v, list | tuple) else [v])}
        usual = [i for i in range(5, min(size, 1000)) if i not in special] or list(range(size))
        draw = random.Random(0)
        end = usual.pop(draw.randrange(len(usual))) if len(usual) > 1 else usual[0]
        kept = _selected_keys(model)
        kept = kept if kept <= LARGEST_WINDOW else 0
        long = 9 + window + (kept and kept + 3)  # padding by an odd number shifts blocks of keys
        lengths = (5 + kept, long, long)
        texts = [draw.choices(usual, k=length + NEW) for length in lengths]
        for text in texts[::2]:
            text[1 - NEW] = end
        return cls(texts, end)

    def logits(self, model: Any) -> list[Tensor]:
        """Return the logits of each text, processed alone and without a cache."""
        return [full_pass(model, _batch(model, ids))[0] for ids in self.texts]


def _selected_keys(model: Any) -> int:
    """Return how many keys sparse attention selects per query; 0 if every key is used."""
    config = model.config.get_text_config(decoder=True)
    if blocks := getattr(config, "index_topk_blocks", None):
        return int(blocks * config.index_block_size)
    return int(getattr(config, "index_topk", None) or 0)


@dataclass(frozen=True)
class _Stage:
    """The correct logits in one precision, and how far others may be from them.

    Attributes:
        truth: Logits of each probe, (tokens, vocabulary).
        tolerance: Allowed error of a token's logits, relative to their spread.
        typical: Compare the median over tokens instead of the maximum. In half precision, rounding
            can send a token to another expert, which changes all its logits.
        precision: Context manager in which the model computes in this precision.
    """

    truth: list[Tensor]
    tolerance: float
    typical: bool = False
    precision: Callable[[Any], AbstractContextManager[Any]] = nullcontext

    def close(self, found: Tensor, expected: Tensor) -> bool:
        """Return whether logits, (tokens, vocabulary), agree."""
        errors = _errors(found, expected)
        return bool((errors.median() if self.typical else errors.max()) <= self.tolerance)

    def holds(self, model: Any, way: Callable[[_Stage], bool]) -> bool:
        """Return whether a mode works; an unknown architecture may raise any exception."""
        try:
            with quiet(), self.precision(model):
                return way(self)
        except Exception:
            return False


def _stages(model: Any, probes: _Probes, truth: list[Tensor]) -> list[_Stage]:
    """Return the precisions in which the modes are compared with single rows."""
    if model.dtype not in HALF:
        return [_Stage(truth, EXACT)]
    try:
        with quiet(), in_float32(model) as state:
            exact = probes.logits(model)
    except Exception:  # for example a kernel or remote code that needs half precision
        exact = []
    if exact and state.pure:
        noise = max(map(_typical_error, truth, exact))
        own = _Stage(exact, max(EXACT, RATIO * noise), typical=True)
        return [_Stage(exact, EXACT, precision=in_float32), own]
    generated = _generated(model, probes)
    if generated is None:
        return []
    noise = _typical_error(*generated)  # both are right by definition
    return [_Stage(truth, min(LARGEST, max(EXACT, RATIO * noise)), typical=True)]


def _errors(found: Tensor, expected: Tensor) -> Tensor:
    """Return the error of each token's logits, relative to their spread; (tokens,)."""
    found, expected = found.float(), expected.float()
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error: Tensor = (found - expected).norm(dim=-1) - 1e-6
    relative: Tensor = error.clamp(min=0) / spread.clamp(min=1e-12)
    return relative


def _typical_error(found: Tensor, expected: Tensor) -> float:
    return float(_errors(found, expected).median())


def _decodes_static(model: Any, probes: _Probes, stage: _Stage) -> bool:
    """Decode two probes in one batch, and with the second, longer one in place of the first."""
    return all(
        _decodes(model, probes, 0, True, stage, partial(greedy_static, at_once=rows, check_every=1))
        for rows in (2, 1)
    )


def _decodes(
    model: Any,
    probes: _Probes,
    short: int,
    padded: bool,
    stage: _Stage,
    decode: Callable[..., Any] | None = None,
) -> bool:
    """Decode two probes in one batch with fixed tokens; the first one ends earlier."""
    chosen = [short, 1]
    texts = [probes.texts[i] for i in chosen]
    seen: list[list[Tensor]] = [[], []]

    def given(logits: Tensor, rows: list[int]) -> Tensor:
        tokens = []
        for row, values in zip(rows, logits, strict=True):
            tokens.append(texts[row][len(texts[row]) - NEW + len(seen[row])])
            seen[row].append(values)
        return torch.tensor(tokens, device=logits.device)

    decode = decode or partial(greedy, padded=padded)
    decode(model, [t[:-NEW] for t in texts], [probes.end], NEW, pick=given)
    return [len(row) for row in seen] == [2, NEW] and all(
        stage.close(torch.stack(row), stage.truth[i][len(text) - NEW - 1 :][: len(row)])
        for i, text, row in zip(chosen, texts, seen, strict=True)
    )


def _scores(model: Any, probes: _Probes, stage: _Stage) -> bool:
    """Compute the logits of all probes in one batch, padded on the right."""
    ids, mask = pad_right(probes.texts, model.device)
    given = {"attention_mask": mask} if takes(model, "attention_mask") else {}
    logits = full_pass(model, ids, **given)
    return all(stage.close(logits[i, : len(own)], own) for i, own in enumerate(stage.truth))


def _continues(model: Any, probes: _Probes, stage: _Stage) -> bool:
    """Compute the logits after two rows whose common prefix is cached."""
    text = probes.texts[1]
    rows = [text[:-2], text[:-5]]
    found = cached_prefix_logits(model, rows, len(rows[1]) - 2)
    return stage.close(found, stage.truth[1][[len(row) - 1 for row in rows]])


def _generated(model: Any, probes: _Probes) -> tuple[Tensor, Tensor] | None:
    """Return the logits of ``model.generate`` and of a full pass; None if it raises an error."""
    prompt = probes.texts[1][:-NEW]
    try:
        with quiet():
            new, logits = model_generate_logits(model, prompt, NEW)
    except Exception:  # transformers does not support generation for some architectures
        return None
    full: Tensor = full_pass(model, _batch(model, [*prompt, *new]))[0]
    return logits, full[len(prompt) - 1 : -1]


def _generates(model: Any, probes: _Probes, stages: Sequence[_Stage]) -> bool | None:
    """Return whether ``model.generate`` agrees with a full pass; None if it raises an error."""
    agree = []
    for stage in stages:
        with stage.precision(model):
            if (pair := _generated(model, probes)) is not None:
                agree.append(stage.close(*pair))
    return any(agree) if agree else None


def _is_causal(model: Any, probes: _Probes, stage: _Stage) -> bool:
    """Return whether other tokens at the end leave the logits before them unchanged."""
    text = probes.texts[1]
    logits = full_pass(model, _batch(model, [*text[:-2], *text[:2]]))[0]
    return stage.close(logits[:-2], stage.truth[1][:-2])


def _batch(model: Any, ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], device=model.device)


def _name(model: Any) -> str:
    return type(without_peft(model)).__name__
