"""The memory of the device decides the size of a pass and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mergeforget.data.schema import Row
from mergeforget.data.tokens import Encoded, encode_rows
from mergeforget.errors import ResourceError
from mergeforget.recipe import change, load_recipe
from mergeforget.train import memory
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


def test_counting_what_is_kept_changes_neither_weights_nor_random_numbers(
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
