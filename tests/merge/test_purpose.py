"""Weights chosen by purpose: the closed form is the minimum, and a pair reaches its target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mergeforget.adapter import read_adapter
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.merge.apply import applied
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.purpose import best_step, choose_weights, encode_answers, mean_answer_loss


def test_the_closed_form_is_the_constrained_minimum() -> None:
    from scipy.optimize import minimize

    draw = np.random.default_rng(0)
    gain, costs = draw.standard_normal(6) * 0.1, draw.standard_normal((9, 6)) * 5
    step = best_step(gain, costs, 0.02, 0.1)
    assert gain @ step == pytest.approx(0.02)
    curvature = costs.T @ costs / 9
    curvature += 0.1 * np.trace(curvature) / 6 * np.eye(6)

    def cost(d: Any) -> float:
        return float(costs.mean(0) @ d + d @ curvature @ d / 2)

    rule: Any = {"type": "eq", "fun": lambda d: gain @ d - 0.02}
    found = minimize(cost, np.zeros(6), constraints=[rule], tol=1e-12)
    np.testing.assert_allclose(step, found.x, atol=1e-5)


def test_a_long_step_is_shortened() -> None:
    step = best_step(np.array([1e-3, 0.0]), np.eye(2), 5.0, 0.1)
    assert np.abs(step).max() == pytest.approx(0.3)


@pytest.fixture
def pair(tmp_path: Path, save_adapter: Callable[..., Path]) -> list[Path]:
    return [save_adapter(tmp_path / "over", 1, scale=0.3), save_adapter(tmp_path / "under", 2)]


def test_a_pair_reaches_its_target_at_less_cost_than_a_common_weight(
    tiny_run: Any, tiny_model: Any, tiny_tokenizer: Any, pair: list[Path]
) -> None:
    adapters = [read_adapter(folder) for folder in pair]
    forget, retain = (read_rows(tiny_run.data / f"{n}.jsonl") for n in ("forget", "retain"))
    found = choose_weights(tiny_model, tiny_tokenizer, adapters, forget, retain, steps=5)
    start = abs(found.forget[0] - found.target)
    assert abs(found.forget[-1] - found.target) < max(0.05, 0.3 * start)
    merged = merge_adapters(adapters, found.candidate()).adapter
    examples = {k: encode_answers(tiny_tokenizer, v) for k, v in (("f", forget), ("r", retain))}

    def losses(adapter: Any) -> tuple[float, float]:
        with applied(tiny_model, adapter):
            kinds = [[float(mean_answer_loss(tiny_model, e)) for e in examples[k]] for k in "fr"]
        return float(np.mean(kinds[0])), float(np.mean(kinds[1]))

    forgotten, kept = losses(merged)
    assert forgotten == pytest.approx(found.forget[-1], abs=1e-3)  # the measured losses are written
    assert kept == pytest.approx(found.retain[-1], abs=1e-3)
    from mergeforget.candidate import Candidate

    others = [
        losses(merge_adapters(adapters, Candidate("linear", None, (w, 1 - w), "delta", 8)).adapter)
        for w in np.linspace(0, 1, 9)
    ]
    reach = [r for f, r in others if abs(f - found.target) <= abs(forgotten - found.target) + 0.05]
    assert all(kept <= r + 0.01 for r in reach)


def test_the_command_writes_the_weights_that_it_chose(tiny_run: Any, tmp_path: Path) -> None:
    words = ["merge", str(tiny_run.root), "--method", "purpose", "--set", "steps=1"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert "purpose: forget loss" in done.stderr
    candidate = json.loads(done.stdout)["candidate"]
    assert candidate["method"] == "cat" and len(candidate["by_module"]["weights"]) == 2
    over, under = read_adapter(tiny_run.over), read_adapter(tiny_run.under)
    name = "model.layers.0.self_attn.q_proj"
    weights = [next(f["value"] for f in s if f["filter"] == name)
               for s in candidate["by_module"]["weights"]]  # fmt: skip
    wanted = weights[0] * over.deltas[name].dense() + weights[1] * under.deltas[name].dense()
    found = read_adapter(tmp_path / "out").deltas[name].dense()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    done = CliRunner().invoke(main, [*words, "--density", "0.5", "--out", str(tmp_path / "no")])
    assert done.exit_code == 2 and "density" in done.output
