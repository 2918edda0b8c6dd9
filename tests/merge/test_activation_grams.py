"""regmean: the least squares solution, from what the layers of the model are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.candidate import Candidate
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.errors import UsageError
from mergeforget.files import write_jsonl
from mergeforget.merge.activation_grams import grams_of, input_grams, layerwise_grams
from mergeforget.merge.apply import applied
from mergeforget.merge.engine import MergeSettings, merge_adapters
from mergeforget.merge.methods.regmean import maps, regmean

DRAW = np.random.default_rng(0)


def test_regmean_is_the_least_squares_solution() -> None:
    inputs, layers = DRAW.standard_normal((3, 50, 6)), DRAW.standard_normal((3, 4, 6))
    grams = np.einsum("nti,ntj->nij", inputs, inputs)
    merged = regmean(layers, np.ones(3), grams=grams, off_diagonal=1.0)
    # W minimises sum_i || X_i W^T - X_i W_i^T ||^2: one least squares problem of all rows
    answers = np.concatenate([x @ w.T for x, w in zip(inputs, layers, strict=True)])
    wanted = np.linalg.lstsq(np.concatenate(inputs), answers, rcond=None)[0].T
    np.testing.assert_allclose(merged, wanted, rtol=1e-7, atol=1e-9)


def test_regmean_scales_the_off_diagonal_entries() -> None:
    inputs, layers = DRAW.standard_normal((2, 50, 6)), DRAW.standard_normal((2, 4, 6))
    grams = np.einsum("nti,ntj->nij", inputs, inputs)
    small = np.stack([0.5 * g + 0.5 * np.diag(np.diag(g)) for g in grams])
    wanted = sum(w @ g for w, g in zip(layers, small, strict=True)) @ np.linalg.inv(small.sum(0))
    merged = regmean(layers, np.ones(2), grams=grams, off_diagonal=0.5)
    np.testing.assert_allclose(merged, wanted, rtol=1e-7, atol=1e-9)
    with pytest.raises(UsageError, match="off_diagonal is 2"):
        maps(grams, off_diagonal=2)


def test_inputs_that_no_data_reaches_are_averaged() -> None:
    grams = np.zeros((2, 3, 3))
    grams[0, 0, 0] = 1.0  # only the first input, and of the first data only
    one, two = np.full((2, 3), 2.0), np.full((2, 3), 4.0)
    merged = regmean(np.stack([one, two]), np.ones(2), grams=grams)
    np.testing.assert_allclose(merged, [[2, 3, 3]] * 2, atol=1e-6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, save_adapter: Callable[..., Path]) -> list[Path]:
    root = tmp_path_factory.mktemp("pair")
    return [save_adapter(root / name, seed, scale=0.3) for seed, name in ((1, "one"), (2, "two"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("data")
    for name in ("a", "b"):
        rows = [{"id": f"{name}{i}", "input": f"{name} of {i}", "output": name * i} for i in (1, 5)]
        write_jsonl(root / f"{name}.jsonl", rows)
    return [root / "a.jsonl", root / "b.jsonl"]


def made(adapters: list[Adapter], draw: np.random.Generator) -> dict[str, Any]:
    found = {}
    for module, delta in adapters[0].deltas.items():
        inputs = draw.standard_normal((len(adapters), 40, delta.a.shape[1]))
        found[module] = list(np.einsum("nti,ntj->nij", inputs, inputs))
    return found


def test_factors_are_merged_as_the_products_are(pair: list[Path]) -> None:
    adapters = [read_adapter(folder) for folder in pair]
    grams = made(adapters, np.random.default_rng(1))
    candidate = Candidate("regmean", weights=(1.0, 0.5), rank=8, arguments={"off_diagonal": 0.7})
    merged = merge_adapters(adapters, candidate, MergeSettings(precision="float64", grams=grams))
    for module, delta in merged.adapter.deltas.items():
        stack = np.stack([a.deltas[module].dense() for a in adapters]).astype(np.float64)
        wanted = regmean(stack, np.array([1, 0.5]), grams=np.stack(grams[module]), off_diagonal=0.7)
        np.testing.assert_allclose(delta.dense(), wanted, atol=1e-6)


def test_input_statistics_equal_those_of_a_forward_pass(
    tiny_model: Any, tiny_tokenizer: Any, pair: list[Path]
) -> None:
    adapter = read_adapter(pair[0])
    rows = [Row(str(i), "one two", "three " * i, "T", "forget") for i in (1, 2)]
    found = input_grams(tiny_model, tiny_tokenizer, rows, adapter)
    assert found.keys() == adapter.deltas.keys()
    total, count = torch.zeros(32, 32, dtype=torch.float64), 0
    for row in rows:
        text = f"{row.input} {row.output}"
        ids = [*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id]
        states = tiny_model.model.embed_tokens(torch.tensor(ids))
        given = tiny_model.model.layers[0].input_layernorm(states).detach().double()
        total, count = total + given.T @ given, count + len(ids)
    wanted = (total / count).numpy()
    np.testing.assert_allclose(found["model.layers.0.self_attn.q_proj"], wanted, rtol=1e-6)


def test_modules_given_the_same_share_a_matrix(tiny_model: Any, tiny_tokenizer: Any) -> None:
    names = [f"model.layers.0.{n}" for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")]
    adapter = Adapter("x", dict.fromkeys(names), {})  # type: ignore[arg-type]
    rows = [Row(str(i), "one", "two " * i, "T", "forget") for i in (1, 2, 3)]
    query, key, up = input_grams(tiny_model, tiny_tokenizer, rows, adapter).values()
    assert query is key and up is not key


def call(*words: str | Path) -> Any:
    return CliRunner().invoke(main, ["merge", *map(str, words)])


def test_the_command_reads_data_and_merges(
    tiny_folder: Path, pair: list[Path], data: list[Path], tmp_path: Path
) -> None:
    words: list[str | Path] = ["--method", "regmean", "--base", tiny_folder, "--json"]
    words += ["--adapter", pair[0], "--adapter", pair[1]]
    done = call(
        *words, "--data", data[0], "--data", data[1], "--rank", "8", "--out", tmp_path / "m"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["energy_lost"] < 1e-6
    done = call(*words, "--data", data[0], "--data", data[1], "--full", "--out", tmp_path / "full")
    assert done.exit_code == 0, done.output
    plain, full = (load_file(f / "model.safetensors") for f in (tiny_folder, tmp_path / "full"))
    adapters = [read_adapter(folder) for folder in pair]
    candidate = Candidate("regmean")
    grams = grams_of(str(tiny_folder), adapters, data, candidate)
    swapped = grams_of(str(tiny_folder), adapters, data[::-1], candidate)
    for module, delta in read_adapter(tmp_path / "m").deltas.items():
        change = (full[f"{module}.weight"] - plain[f"{module}.weight"]).numpy()
        np.testing.assert_allclose(change, delta.dense(), atol=1e-5)
        assert not np.allclose(grams[module][0], swapped[module][0])


def test_a_wrong_number_of_data_files_is_refused(
    pair: list[Path], data: list[Path], tiny_folder: Path, tmp_path: Path
) -> None:
    adapters = [read_adapter(folder) for folder in pair]
    with pytest.raises(UsageError, match="--data"):
        merge_adapters(adapters, Candidate("regmean"))
    with pytest.raises(UsageError, match="uses no data"):
        merge_adapters(adapters, Candidate("linear"), MergeSettings(grams={}))
    three = [*data, data[0]]
    with pytest.raises(UsageError, match="2 adapters and 3 files"):
        grams_of(str(tiny_folder), adapters, three, Candidate("regmean"))
    words: list[str | Path] = [
        "--model",
        tiny_folder,
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "m",
    ]
    done = CliRunner().invoke(main, ["merge-models", "--method", "regmean", *map(str, words)])
    assert done.exit_code == 2 and "--data" in done.output
    whole = replace(adapters[0], extras={"base_model.model.lm_head.weight": np.ones((2, 2))})
    from mergeforget.merge.activation_grams import as_sum

    with pytest.raises(UsageError, match="'one' changes more than"):
        as_sum([whole], Candidate("regmean", weights=(1.0,)), {})


def test_layers_are_merged_one_after_the_other(
    tiny_model: Any, tiny_tokenizer: Any, pair: list[Path], data: list[Path]
) -> None:
    adapters, rows = [read_adapter(folder) for folder in pair], [read_rows(f) for f in data]
    candidate = Candidate("regmean_pp", weights=(1.0, 0.5), space="delta")
    found = layerwise_grams(tiny_model, tiny_tokenizer, rows, adapters, candidate)
    layer = "model.layers.{}.mlp.up_proj".format
    for i, adapter in enumerate(adapters):  # the first layer has no earlier layer
        with applied(tiny_model, adapter):
            own = input_grams(tiny_model, tiny_tokenizer, rows[i], adapter)
        np.testing.assert_allclose(found[layer(0)][i], own[layer(0)], rtol=1e-4, atol=1e-6)
        assert not np.allclose(found[layer(1)][i], own[layer(1)], rtol=1e-3)
    # the second layer gets the output of the merged first one
    how = MergeSettings(precision="float64", grams=found)
    merged = merge_adapters(adapters, replace(candidate, rank=16), how).adapter.deltas
    first = {name: d for name, d in merged.items() if ".layers.0." in name}
    second = {name: d for name, d in adapters[1].deltas.items() if ".layers.1." in name}
    mixed = replace(adapters[1], deltas=first | second)
    with applied(tiny_model, mixed):
        wanted = input_grams(tiny_model, tiny_tokenizer, rows[1], mixed)
    np.testing.assert_allclose(found[layer(1)][1], wanted[layer(1)], rtol=1e-3, atol=1e-5)


def test_lora_on_an_embedding_is_refused(tiny_folder: Path, data: list[Path]) -> None:
    embedding = Adapter("x", {}, {}, embeddings=frozenset({"model.embed_tokens"}))
    with pytest.raises(UsageError, match="token ids"):
        grams_of(str(tiny_folder), [embedding], data[:1], Candidate("regmean", weights=(1.0,)))
