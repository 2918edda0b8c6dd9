"""Weights chosen by purpose: the closed form is the minimum, and a pair reaches its target."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mergeforget as mf
from mergeforget.adapter import Adapter, LowRankDelta, read_adapter, write_adapter
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.apply import applied
from mergeforget.merge.engine import MergeSettings, merge_adapters
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.merge.purpose import (
    PurposeMerge,
    best_step,
    choose_weights,
    encode_answers,
    mean_answer_loss,
)
from mergeforget.merge.request import at_module


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
    examples = {
        k: encode_answers(tiny_model, tiny_tokenizer, v) for k, v in (("f", forget), ("r", retain))
    }

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


@pytest.fixture
def unequal(tmp_path: Path, save_adapter: Callable[..., Path], tiny_folder: Path) -> list[Path]:
    """Two adapters with other names of the base, of which the second lacks some modules."""
    pair = [save_adapter(tmp_path / "over", 1, scale=0.3), save_adapter(tmp_path / "under", 2)]
    second = read_adapter(pair[1])
    deltas = {name: d for name, d in second.deltas.items() if "q_proj" in name}
    config = second.config | {"base_model_name_or_path": "other/name", "target_modules": ["q_proj"]}
    write_adapter(Adapter("under", deltas, config), tmp_path / "less")
    assert 0 < len(deltas) < len(second.deltas)
    first = read_adapter(pair[0])
    named = first.config | {"base_model_name_or_path": "one/base"}
    write_adapter(replace(first, config=named), tmp_path / "named")
    return [tmp_path / "named", tmp_path / "less"]


@pytest.mark.parametrize("method", ["purpose", "adamerging", "regmean_pp"])
def test_methods_with_data_respect_modules_and_same_base(
    method: str, unequal: list[Path], tiny_run: Any, tiny_folder: Path
) -> None:
    data = [tiny_run.data / f"{name}.jsonl" for name in ("forget", "retain")]
    given: Any = {"method": method, "data": data, "base": tiny_folder}
    given["arguments"] = {} if method == "regmean_pp" else {"steps": 1, "rows": 2}
    common = mf.merge(unequal, modules="common", same_base=True, **given)
    assert all("q_proj" in name for name in common.adapter.deltas)
    whole = mf.merge(unequal, modules="all", same_base=True, **given)
    assert whole.adapter.deltas.keys() == read_adapter(unequal[0]).deltas.keys()
    with pytest.raises(InputError, match="--same-base"):
        mf.merge(unequal, modules="all", **given)
    with pytest.raises(InputError, match="--modules common"):
        mf.merge(unequal, same_base=True, **given)


def test_weights_are_learned_for_the_merged_modules_only(
    unequal: list[Path], tiny_model: Any, tiny_tokenizer: Any, tiny_run: Any
) -> None:
    """The losses during the choice are those of the merge."""
    adapters = [read_adapter(folder) for folder in unequal]
    forget, retain = (read_rows(tiny_run.data / f"{n}.jsonl") for n in ("forget", "retain"))
    found = choose_weights(
        tiny_model, tiny_tokenizer, adapters, forget, retain, steps=1, rows=2, modules="common",
        same_base=True,
    )  # fmt: skip
    assert all("q_proj" in name for name in found.weights)
    settings = MergeSettings(modules="common", same_base=True)
    merged = merge_adapters(adapters, found.candidate(), settings).adapter
    with applied(tiny_model, merged):
        losses = [float(mean_answer_loss(tiny_model, e))
                  for e in encode_answers(tiny_model, tiny_tokenizer, forget[:2])]  # fmt: skip
    assert float(np.mean(losses)) == pytest.approx(found.forget[-1], abs=1e-3)


def test_a_module_whose_name_begins_another_keeps_its_weights() -> None:
    table: dict[str, tuple[float, ...]] = {
        "layers.0.mlp.gate": (0.9, 0.1),
        "layers.0.mlp.gate_proj": (0.2, 0.8),
    }
    candidate = PurposeMerge(table, 1.0).candidate()
    for name, weights in table.items():
        assert at_module(candidate, name, 0.0).weights == weights


def test_the_task_of_emr_is_the_adapter_that_was_named(tmp_path: Path) -> None:
    """Of three adapters, the first lacks a module and the second another one."""
    draw = np.random.default_rng(0)

    def adapter(name: str, modules: str) -> Adapter:
        deltas = {
            f"layers.{i}.q": LowRankDelta(
                draw.normal(size=(2, 6)).astype("f4"), draw.normal(size=(5, 2)).astype("f4"), 1.0
            )
            for i in modules
        }
        return Adapter(name, deltas, {"base_model_name_or_path": "m", "r": 2, "lora_alpha": 2})

    one, two, three = adapter("one", "02"), adapter("two", "01"), adapter("three", "012")

    def merged(adapters: list[Adapter], task: int, name: str) -> Any:
        given: Any = {"modules": "all", "arguments": {"task": task}, "rank": 5}
        return mf.merge(adapters, method="emr", **given).adapter.deltas[name].dense()

    every = [one, two, three]
    for name, owners, place in (("0", every, 1), ("1", [two, three], 0)):
        wanted = MERGE_METHODS.get("emr").fn(
            np.stack([a.deltas[f"layers.{name}.q"].dense() for a in owners]),
            np.ones(len(owners)), task=place,
        )  # fmt: skip
        found = merged(every, 1, f"layers.{name}.q")
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not merged(every, 1, "layers.2.q").any()  # the second has no change there
    for task in (-1, 3):
        with pytest.raises(UsageError, match="index of one of 3 inputs"):
            merged(every, task, "layers.0.q")
