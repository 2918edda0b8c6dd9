"""The memory of the device decides the size of a pass and gradient checkpointing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mergeforget.chunked_logprobs import Projection, top_labels
from mergeforget.data.schema import Row
from mergeforget.data.tokens import Encoded, encode_rows
from mergeforget.errors import NumericError, ResourceError
from mergeforget.models import attention_for, load_model
from mergeforget.recipe import ModelSpec, change, load_recipe
from mergeforget.train import memory
from mergeforget.train.callbacks import Checkpoints, Guard
from mergeforget.train.memory import bytes_per_token, fit_passes, tokens_at_once
from mergeforget.train.objective import check_recipe
from mergeforget.train_config import Term, Training

PLAN = Training(objective=[Term(loss="ga", on="forget"), Term(loss="gd", on="retain")])


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer: Any) -> dict[str, list[Encoded]]:
    rows = [Row(str(i), "Who?", f"Ada {i}.") for i in range(3)]
    return {n: encode_rows(tiny_tokenizer, rows, max_length=64) for n in ("forget", "retain")}


@pytest.mark.parametrize(("share", "expected"), [(2.0, False), (0.5, True)])
def test_checkpointing_is_chosen_where_the_largest_micro_batch_would_not_fit(
    share: float,
    expected: bool,
    encoded: dict[str, list[Encoded]],
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    largest = tokens_at_once(encoded, PLAN)
    needed = largest * bytes_per_token(model, checkpointing=False)
    free = memory.reserved_bytes(model, PLAN) + share * needed / memory.SHARE
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert fit_passes(model, encoded, PLAN).checkpointing is expected
    for fixed in (True, False):
        plan = PLAN.model_copy(update={"gradient_checkpointing": fixed})
        assert fit_passes(model, encoded, plan).checkpointing is fixed


def test_gradient_checkpointing_does_not_change_the_training(train: Callable[..., Any]) -> None:
    plain, _ = train("plain")
    saved, _ = train("saved", gradient_checkpointing=True)
    for key, value in plain.items():
        torch.testing.assert_close(saved[key], value, rtol=1e-4, atol=1e-6)


def test_measuring_memory_changes_neither_weights_nor_random_numbers(
    make_model: Callable[..., Any],
) -> None:
    model = make_model()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    wide = bytes_per_token(model, checkpointing=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert 0 < bytes_per_token(model, checkpointing=True) < wide
    longer = bytes_per_token(model, checkpointing=False, tokens=128)
    assert longer == pytest.approx(wide, rel=0.1)  # per token, whatever the length


def test_the_recipe_can_fix_the_size_of_a_pass(
    encoded: dict[str, list[Encoded]], make_model: Callable[..., Any]
) -> None:
    plan = PLAN.model_copy(update={"tokens_per_pass": 77})
    assert fit_passes(make_model(), encoded, plan).tokens == 77


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("installed", [False, True])
def test_an_optimiser_of_8_bits_is_refused_where_it_cannot_run(
    name: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("zjuklab", [f"pair.over.optimizer={name}"])
    monkeypatch.setattr("mergeforget.train.objective.find_spec", lambda _: installed or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    match = "needs a GPU" if installed else r"bitsandbytes.*pip install 'mergeforget\[gpu\]'"
    with pytest.raises(ResourceError, match=rf"pair.over.optimizer: {name}.*{match}"):
        check_recipe(change(recipe, data={"forget": "f", "retain": "r"}))


@pytest.mark.parametrize(
    ("attention", "device", "dtype", "installed", "expected"),
    [
        ("auto", "cpu", "auto", True, None),
        ("auto", "cuda", "bfloat16", True, "flash_attention_2"),
        ("auto", "cuda", "bfloat16", False, None),
        ("auto", "cuda", "float32", True, None),
        ("eager", "cpu", "auto", False, "eager"),
        ("sdpa", "cuda", "bfloat16", True, "sdpa"),
        ("flex", "cuda", "bfloat16", False, "flex_attention"),
        ("flex", "cpu", "auto", False, "model.attention: flex needs a GPU"),
        ("flash", "cpu", "auto", True, "model.attention: flash needs a GPU"),
        ("flash", "cuda", "bfloat16", False, "pip install flash-attn"),
        ("flash", "cuda", "float32", True, "half precision only"),
    ],
)
def test_the_attention_kernel_follows_recipe_and_machine(
    attention: Any,
    device: str,
    dtype: Any,
    installed: bool,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mergeforget.models.find_spec", lambda _: installed or None)
    spec = ModelSpec(name="m", attention=attention, dtype=dtype)
    if expected and " " in expected:
        with pytest.raises(ResourceError, match=expected):
            attention_for(spec, device)
    else:
        found = attention_for(spec, device).get("attn_implementation")
        assert found == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_is_loaded_with_the_attention_of_the_recipe(
    attention: Any, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    make_model().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    spec = ModelSpec(name=str(tmp_path), attention=attention)
    assert load_model(spec, device="cpu").model.config._attn_implementation == attention


def test_monitored_labels_do_not_materialise_the_logits() -> None:
    hidden, weight = torch.randn(1100, 4), torch.randn(9, 4)
    expected = (hidden @ weight.T).argmax(-1)
    assert torch.equal(top_labels(Projection(hidden, weight)), expected)
    assert torch.equal(top_labels(hidden @ weight.T), expected)


def test_slow_checkpoints_are_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("mergeforget.train.callbacks.seal_checkpoint", lambda _: None)
    callback = Checkpoints(60.0)
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=1, max_steps=9)

    def due(seconds: float) -> bool:
        now[0] += seconds
        control = SimpleNamespace(should_save=False)
        callback.on_step_end(args, state, control)
        return bool(control.should_save)

    assert not due(59.0) and due(1.0)
    now[0] += 30.0  # the checkpoint takes half a minute: at most 5 % of the time is spent on it
    callback.on_save(args, state, None)
    assert not due(590.0) and due(10.0)


def test_the_guard_finds_a_single_weight_that_moves_and_keeps_no_copy() -> None:
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for moves in (True, False):
        guard = Guard()
        model.weight.grad = torch.zeros_like(model.weight)
        model.weight.grad[5, 7] = 1.0 if moves else 0.0
        guard.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
        assert sum(t.numel() for t in guard.before or []) == 2  # an entry of weight and of bias
        optimizer.step()
        if moves:
            guard.on_optimizer_step(None, None, None, model=model)
        else:
            with pytest.raises(NumericError, match="did not change"):
                guard.on_optimizer_step(None, None, None, model=model)
