"""Determines which optimisations leave the outputs of a model unchanged.

Batches are faster than single rows, but padding, an unusual cache, or a row that leaves the batch
changes the outputs of some architectures, and their configuration does not say so. Before a model
is first measured, short texts are therefore processed alone and without a cache, which defines the
correct logits, and then with each optimisation. The fastest mode with the same logits is used; a
message reports a slower one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mergeforget.console import quiet, say
from mergeforget.errors import InputError
from mergeforget.evaluate.decoding import (
    bare,
    cached_prefix_logits,
    full_pass,
    greedy,
    has_plain_cache,
    model_generate_logits,
    pad_right,
    takes,
)

Rows = Literal["padded", "equal", "generate", "uncached"]
NEW = 4  # tokens that each probe decodes
LARGEST_WINDOW = 256  # tokens; probes are longer than sliding windows up to this size


@dataclass(frozen=True)
class SafeModes:
    """Optimisations that are safe for a model.

    Attributes:
        rows: How answers are decoded. ``padded``: rows of all lengths in one batch; ``equal``: rows
            of equal length in one batch; ``generate``: each row with the model's own ``generate``;
            ``uncached``: each row with a full forward pass per token.
        scored_together: Whether likelihoods may be computed for right-padded rows in one pass.
        prefix: Whether rows with a common prefix may share its cache.
    """

    rows: Rows = "padded"
    scored_together: bool = True
    prefix: bool = True


_KNOWN: WeakKeyDictionary[Any, SafeModes] = WeakKeyDictionary()  # each model is checked once


def safe_modes(model: Any) -> SafeModes:
    """Check a model before it is first measured; the result is cached.

    Args:
        model: A causal language model, with or without an adapter.

    Raises:
        InputError: A prediction depends on later tokens, or the model cannot be called with token
            ids alone.
    """
    base = bare(model)
    if base not in _KNOWN:
        training = model.training
        model.eval()
        try:
            found = _check(model)
        finally:
            model.train(training)
        if found is None:  # the outputs are not finite; the measurement raises an error
            return SafeModes()
        _KNOWN[base] = found
        if text := _slow_path(found):
            say(f"{type(base).__name__}: {text}")
    return _KNOWN[base]


def _slow_path(ways: SafeModes) -> str:
    """Describe modes that are slower than the default; empty for the default."""
    answers = {
        "padded": "",
        "equal": "padding changes its answers, so only prompts of one length share a batch",
        "generate": "a batch changes its answers, so model.generate writes them row by row",
        "uncached": "its cache changes its answers, so every new token takes a full pass",
    }[ways.rows]
    scores = "" if ways.scored_together else "likelihoods are computed row by row"
    parts = [part for part in (answers, scores) if part]
    return "; ".join(parts) + " (slower)." if parts else ""


@torch.inference_mode()
def _check(model: Any) -> SafeModes | None:
    probes = _Probes.of(model)
    try:
        truth = [full_pass(model, _batch(model, ids))[0] for ids in probes.texts]
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{_name(model)} cannot be evaluated: a forward pass with token ids alone fails "
            f"({reason[:200]}). Only causal language models of text are supported."
        ) from error
    if not all(bool(torch.isfinite(logits).all()) for logits in truth):
        return None
    close = _comparison(model)
    _check_causal(model, probes.texts[1], truth[1], close)

    def works(way: Callable[[], bool]) -> bool:
        try:
            with quiet():
                return way()
        except Exception:  # an unknown architecture may raise anything; the mode is then not used
            return False

    def decoded(short: int, padded: bool) -> bool:
        return _decodes(model, probes, truth, close, short, padded)

    def scored() -> bool:
        ids, mask = pad_right(probes.texts, model.device)
        given = {"attention_mask": mask} if takes(model, "attention_mask") else {}
        logits = full_pass(model, ids, **given)
        return all(close(logits[i, : len(own)], own) for i, own in enumerate(truth))

    def prefixed() -> bool:
        text = probes.texts[1]
        rows = [text[:-2], text[:-5]]
        found = cached_prefix_logits(model, rows, len(rows[1]) - 2)
        return all(close(found[i], truth[1][len(row) - 1]) for i, row in enumerate(rows))

    rows: Rows = "uncached"
    if works(lambda: decoded(0, True)):
        rows = "padded"
    else:
        own = _generates(model, probes.prompts[1], close)
        if own is False:
            raise InputError(
                f"{_name(model)} cannot be evaluated: model.generate and a forward pass over the "
                "same tokens disagree, so it is unclear which output its users would see."
            )
        if works(lambda: decoded(2, False)):
            rows = "equal"
        elif own:
            rows = "generate"
    prefix = rows == "padded" and has_plain_cache(model) and works(prefixed)
    return SafeModes(rows, works(scored), prefix)


@dataclass(frozen=True)
class _Probes:
    """Three random texts: a short one and two long ones of equal length."""

    texts: list[list[int]]

    @classmethod
    def of(cls, model: Any) -> _Probes:
        config = model.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None) or 0
        window = window if isinstance(window, int) and window <= LARGEST_WINDOW else 0
        size = model.get_input_embeddings().weight.shape[0]
        special = {v for k, v in vars(config).items() if k.endswith("_token_id")}
        usual = [i for i in range(5, min(size, 1000)) if i not in special] or list(range(size))
        draw = random.Random(0)
        lengths = (5, 9 + window, 9 + window)
        return cls([draw.choices(usual, k=length + NEW) for length in lengths])

    @property
    def prompts(self) -> list[list[int]]:
        return [text[:-NEW] for text in self.texts]


def _decodes(
    model: Any, probes: _Probes, truth: list[Tensor], close: Any, short: int, padded: bool
) -> bool:
    """Decode two probes in one batch with fixed tokens; the first one ends earlier."""
    chosen = [short, 1]
    texts = [probes.texts[i] for i in chosen]
    seen: list[tuple[int, int, Tensor]] = []
    steps = [0, 0]
    end = texts[0][-NEW + 1]  # the token that ends the first probe
    fresh = next(i for i in range(model.get_input_embeddings().weight.shape[0]) if i != end)

    def given(logits: Tensor, rows: list[int]) -> Tensor:
        tokens = []
        for row, values in zip(rows, logits, strict=True):
            place = len(texts[row]) - NEW + steps[row]
            seen.append((row, place - 1, values))
            tokens.append(texts[row][place])
            steps[row] += 1
        return torch.tensor(tokens, device=logits.device)

    if end in texts[1][-NEW:]:
        texts[1] = [fresh if token == end else token for token in texts[1]]
        truth = [*truth[:1], full_pass(model, _batch(model, texts[1]))[0], *truth[2:]]
    greedy(model, [t[:-NEW] for t in texts], [end], NEW, padded=padded, pick=given)
    return len(seen) == 2 + NEW and all(
        close(values, truth[chosen[row]][place]) for row, place, values in seen
    )


def _generates(model: Any, prompt: list[int], close: Any) -> bool | None:
    """Return whether the logits of ``model.generate`` equal those of a full pass; None on error."""
    try:
        with quiet():
            new, logits = model_generate_logits(model, prompt, NEW)
    except Exception:  # transformers does not support generation for some architectures
        return None
    full = full_pass(model, _batch(model, [*prompt, *new]))[0]
    return bool(close(logits, full[len(prompt) - 1 : -1]))


def _check_causal(model: Any, text: list[int], truth: Tensor, close: Any) -> None:
    """Raise InputError if earlier predictions change with the last tokens."""
    changed = [*text[:-2], *text[:2]]
    logits = full_pass(model, _batch(model, changed))[0]
    if not close(logits[:-2], truth[:-2]):
        raise InputError(
            f"{_name(model)} is not a causal language model: its predictions depend on later "
            "tokens, so its answers and likelihoods would be meaningless. Use a decoder-only model."
        )


def _comparison(model: Any) -> Callable[[Tensor, Tensor], bool]:
    """Return a comparison of logits up to rounding, relative to their spread."""
    wide = next(model.parameters()).dtype in (torch.float32, torch.float64)
    tolerance = 1e-3 if wide else 0.1

    def close(found: Tensor, expected: Tensor) -> bool:
        found, expected = found.float(), expected.float()
        size = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
        error = (found - expected).norm(dim=-1)
        return bool((error <= tolerance * size + 1e-6).all())

    return close


def _batch(model: Any, ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], device=model.device)


def _name(model: Any) -> str:
    return type(bare(model)).__name__
