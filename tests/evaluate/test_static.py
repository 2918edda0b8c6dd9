"""Decoding with a static cache: the answers of the dynamic cache, ready for a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mergeforget.evaluate import static_decoding
from mergeforget.evaluate.decoding import greedy
from mergeforget.evaluate.generate import REFILLS, generate_ids
from mergeforget.evaluate.self_check import safe_modes
from mergeforget.evaluate.static_decoding import (
    ROUNDING,
    _StaticPasses,
    greedy_static,
    wants_static_cache,
)
from mergeforget.models import CACHE, load_model
from mergeforget.recipe import ModelSpec

PROMPTS = [[5 + i] * (3 + 7 * i % 11) + [i] for i in range(7)] + [list(range(5, 65))]
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default")


def varied() -> Callable[[torch.Tensor, list[int]], torch.Tensor]:
    """A choice of tokens that depends on logits, row and step; the most likely would repeat."""
    step = iter(range(10**6))

    def pick(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        turn = next(step)
        ranks = torch.tensor([(7 * row + 3 * turn) % 11 for row in rows])
        return logits.argsort(-1, descending=True)[torch.arange(len(rows)), ranks]

    return pick


@pytest.mark.parametrize("check_every", [1, 3, 8])
def test_static_and_dynamic_caches_give_the_same_answers(check_every: int, tiny_model: Any) -> None:
    free = greedy(tiny_model, PROMPTS, [], 20, pick=varied())
    ends = [free[0][3], free[1][7], free[2][12]]
    expected = greedy(tiny_model, PROMPTS, ends, 20, pick=varied())
    assert len({len(row) for row in expected}) > 2  # rows end at different steps
    found = greedy_static(tiny_model, PROMPTS, ends, 20, check_every=check_every, pick=varied())
    assert found == expected
    assert greedy_static(tiny_model, PROMPTS, ends, 0) == [[]] * len(PROMPTS)


def test_static_passes_reuse_buffers_without_synchronisation(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    waits: list[str] = []

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            waits.extend(name for name in WAITS if name in str(func))
            return func(*args, **(kwargs or {}))

    forward = _StaticPasses._forward

    def watched(self: _StaticPasses) -> torch.Tensor:
        keys = [layer.keys for layer in self.cache.layers]
        values = [layer.values for layer in self.cache.layers]
        seen.append(
            tuple(t.data_ptr() for t in (self.ids, self.mask, self.positions, *keys, *values))
        )
        assert (
            all(t.shape[2] == self.mask.shape[-1] for t in keys)
            and self.mask.shape[-1] % ROUNDING == 0
        )
        with Waits():
            return forward(self)

    monkeypatch.setattr(_StaticPasses, "_forward", watched)
    greedy_static(tiny_model, PROMPTS, [], 12)
    assert len(seen) == 11 and len(set(seen)) == 1 and not waits


def test_the_recipe_chooses_the_cache_and_the_self_check_can_refuse_it(
    tiny_folder: Any,
    make_model: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dynamic = load_model(ModelSpec(name=str(tiny_folder))).model
    static = load_model(ModelSpec(name=str(tiny_folder), cache="static")).model
    assert not wants_static_cache(dynamic) and wants_static_cache(static)
    setattr(dynamic, CACHE, "auto")  # on a GPU only
    assert not wants_static_cache(dynamic)
    assert safe_modes(static).static and not safe_modes(dynamic).static
    answers = [
        generate_ids(model, PROMPTS, stop=[3], max_new_tokens=9, batch_tokens=200)
        for model in (dynamic, static)
    ]
    assert answers[0] == answers[1]
    eager = make_model()
    eager.config._attn_implementation = "eager"  # the model adds masks, so they cannot be boolean
    setattr(eager, CACHE, "static")
    with caplog.at_level("INFO", "mergeforget"):
        assert not safe_modes(eager).static and safe_modes(eager).rows == "padded"
    assert "a static cache changes its answers" in caplog.text
    assert generate_ids(eager, PROMPTS, stop=[3], max_new_tokens=9) == answers[0]


def ends_at(lengths: list[int]) -> Callable[[torch.Tensor, list[int]], torch.Tensor]:
    """A choice of tokens that depends on logits, row and step, and ends each row at its length."""
    counts = [0] * len(lengths)

    def pick(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        ranks = torch.tensor([(7 * row + 3 * counts[row]) % 11 for row in rows])
        ordered = (logits[:, 3:].argsort(-1, descending=True) + 3)[torch.arange(len(rows)), ranks]
        for place, row in enumerate(rows):
            counts[row] += 1
            if counts[row] == lengths[row]:
                ordered[place] = 2
        return ordered

    return pick


@pytest.mark.parametrize(("at_once", "check_every"), [(4, 1), (4, 8), (1, 8)])
def test_waiting_prompts_take_the_places_of_finished_rows(
    at_once: int, check_every: int, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_decoding, "ROUNDING", 1)  # the smallest buffers, which start anew
    prompts = sorted((PROMPTS[i % 7] + [i] for i in range(16)), key=len, reverse=True)
    lengths = [15 if i % 4 == 0 else 2 for i in range(16)]  # 15: more than the limit
    parts = [slice(i, i + at_once) for i in range(0, 16, at_once)]
    expected = greedy(tiny_model, prompts, [2], 14, pick=ends_at(lengths))
    assert [len(answer) for answer in expected] == [min(14, length) for length in lengths]
    sizes, buffers = [], set()
    run = _StaticPasses.run

    def counted(self: _StaticPasses, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        buffers.add((len(tokens), self.ids.data_ptr(), self.cache.layers[0].keys.data_ptr()))
        assert int(self.positions.max()) < len(prompts[0]) + 14
        return run(self, tokens)

    monkeypatch.setattr(_StaticPasses, "run", counted)
    options: dict[str, Any] = {"check_every": check_every}
    found = greedy_static(
        tiny_model, prompts, [2], 14, at_once=at_once, pick=ends_at(lengths), **options
    )
    assert found == expected
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == at_once
    assert len(buffers) == len(set(sizes))  # refilling keeps the buffers, so a graph stays valid
    passes, sizes[:] = len(sizes), []
    for part in parts:
        greedy_static(tiny_model, prompts[part], [2], 14, pick=ends_at(lengths[part]), **options)
    assert passes < 0.7 * len(sizes) if at_once == 4 else passes <= len(sizes)


def test_a_queue_is_decoded_with_a_static_cache_in_full_batches(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(ModelSpec(name=str(tiny_folder), cache="static")).model
    calls: list[tuple[int, int]] = []

    def watched(model: Any, prompts: Any, *args: Any, at_once: int) -> Any:
        calls.append((len(prompts), at_once))
        return greedy_static(model, prompts, *args, at_once=at_once)

    monkeypatch.setattr("mergeforget.evaluate.generate.greedy_static", watched)
    prompts = [PROMPTS[-1 - i % 2] for i in range(12)]
    given: dict[str, Any] = {"stop": [3], "max_new_tokens": 9}
    assert generate_ids(model, prompts, batch_tokens=200, **given) == [
        generate_ids(model, [prompt], **given)[0] for prompt in prompts
    ]
    rows, at_once = calls[0]
    assert at_once == 200 // (60 + 9) and rows == 200 * REFILLS // (60 + 9)
