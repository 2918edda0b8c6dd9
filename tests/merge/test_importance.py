"""Merges weighted by the importance of each entry, measured from gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import GPT2Config, GPT2LMHeadModel

from mergeforget.adapter import Adapter, LowRankDelta, read_adapter
from mergeforget.candidate import Candidate
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.errors import UsageError
from mergeforget.merge.activation_grams import grams_of, importances
from mergeforget.merge.adaptive_weights import learn_shares
from mergeforget.merge.methods.fisher import fisher
from mergeforget.merge.methods.perta import perta
from mergeforget.merge.purpose import choose_weights, encode_answers, mean_answer_loss


def test_fisher_and_perta_match_a_hand_calculation() -> None:
    stack = np.array([[[1.0, 2.0, 3.0]], [[3.0, 4.0, 5.0]]])
    known = np.array([[[1.0, 0.0, 3.0]], [[1.0, 2.0, 1.0]]])
    found: Any = fisher(stack, [1, 1], importance=known, floor=0.0)
    np.testing.assert_allclose(found, [[2.0, 4.0, 3.5]])  # (1+3)/2, 4, (9+5)/4
    weighed: Any = fisher(stack, [3, 1], importance=known, floor=0.0)
    np.testing.assert_allclose(weighed, [[1.5, 4.0, 3.2]])  # (3+3)/4, 4, (27+5)/10
    forget, retain = np.array([[[1.0, 0.0, 2.0]]]), np.array([[[3.0, 5.0, 0.0]]])
    found = perta(stack[:1], [-1], importance=forget, contrast=retain)
    np.testing.assert_allclose(found, [[-0.25, 0.0, -3.0]])


def test_importance_is_the_mean_squared_gradient(
    tiny_model: Any, tiny_tokenizer: Any, tiny_run: Any
) -> None:
    rows = read_rows(tiny_run.data / "forget.jsonl")[:3]
    adapter = read_adapter(tiny_run.over)
    found = importances(tiny_model, tiny_tokenizer, rows, [adapter])
    name = "model.layers.0.mlp.up_proj"
    weight = tiny_model.get_submodule(name).weight.requires_grad_(True)
    grads = [
        torch.autograd.grad(mean_answer_loss(tiny_model, one), weight)[0]
        for one in encode_answers(tiny_model, tiny_tokenizer, rows)
    ]
    wanted = torch.stack([g * g for g in grads]).mean(0).numpy()
    np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-12)
    assert found.keys() == adapter.deltas.keys()


def test_rows_longer_than_the_model_s_positions_are_measured(tiny_tokenizer: Any) -> None:
    """GPT-2 has no embedding for later positions; the prompt is truncated, not the answer."""
    settings = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2
    )
    model = GPT2LMHeadModel(settings).eval()
    module = "transformer.h.0.attn.c_attn"
    delta = LowRankDelta(np.ones((1, 16), np.float32), np.ones((48, 1), np.float32), 0.1)
    pair = [Adapter(name, {module: delta}, {"peft_type": "LORA"}) for name in ("over", "under")]
    long = Row("long", "Where does Ada live? " * 20, "She lives in Rome.", "forget")
    assert np.isfinite(importances(model, tiny_tokenizer, [long], pair)[module]).all()
    chosen = choose_weights(model, tiny_tokenizer, pair, [long], [long], steps=1)
    learned = learn_shares(
        model, tiny_tokenizer, pair, [[long]], Candidate("adamerging", arguments={"steps": 1})
    )
    assert np.isfinite(chosen.forget).all() and np.isfinite(learned.entropy).all()


def test_perta_accepts_both_estimates(tiny_run: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
    files = [tiny_run.data / "forget.jsonl", tiny_run.data / "retain.jsonl"]
    adapter = read_adapter(tiny_run.over)
    name = "model.layers.0.mlp.up_proj"
    rows = read_rows(files[0])
    for estimate in ("grad", "fisher"):
        candidate = Candidate("perta", weights=(-1.0,), arguments={"estimate": estimate})
        found = grams_of(tiny_run.base(), [adapter], files, candidate)[name][0]
        squared = estimate == "fisher"
        wanted = importances(tiny_model, tiny_tokenizer, rows, [adapter], squared=squared)[name]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-9)
    with pytest.raises(UsageError, match="grad or fisher"):
        perta(np.ones((1, 1, 1)), [1.0], importance=np.ones((1, 1, 1)),
              contrast=np.ones((1, 1, 1)), estimate="other")  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("method", ["fisher", "perta"])
def test_the_command_measures_on_the_rows_of_the_run(
    method: str, tiny_run: Any, tmp_path: Path, save_adapter: Callable[..., Path]
) -> None:
    words = ["merge", str(tiny_run.root), "--method", method, "--rank", "4"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found, over = read_adapter(tmp_path / "out"), read_adapter(tiny_run.over)
    assert found.deltas.keys() == over.deltas.keys()
    assert all(0 < found.deltas[m].norm() for m in over.deltas)
    done = CliRunner().invoke(main, [*words, "--full", "--out", str(tmp_path / "full")])
    assert done.exit_code == 2 and "writes only adapters" in done.output
