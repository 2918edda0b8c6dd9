"""Parity with mergekit 0.1.5: configurations run by both, and its sparsifiers draw for draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mergekit.merge_methods.karcher import karcher_merge_tensors
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.checkpoint.full import merge_models
from mergeforget.merge.checkpoint.tensor_jobs import Output
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sparsify import drop, magprune, outliers, trim
from mergeforget.merge.mergekit_bridge import run_mergekit
from mergeforget.merge.mergekit_config import (
    METHODS,
    ON_MODELS,
    UNWEIGHTED,
    Request,
    read_config,
    to_config,
)
from mergeforget.merge.methods.karcher import karcher
from mergeforget.merge.methods.multislerp import multislerp

RANDOM = {"dare_ties", "dare_linear", "della", "della_linear"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_models: Callable[..., Any]) -> list[Path]:
    found: list[Path] = save_models(tmp_path_factory.mktemp("models"), apart=0.05)
    return found


def configuration(name: str, models: list[Path], **parameters: Any) -> dict[str, Any]:
    base, one, two = map(str, models)
    config: dict[str, Any] = {"merge_method": name, "dtype": "float32"}
    takes = METHODS[name].parameters
    density = {"density": 0.6} if "density" in takes else {}
    weights = ({"weight": 0.7}, {"weight": -0.4}) if name != "karcher" else ({}, {})
    if name in UNWEIGHTED:
        weights = ({}, {})
    if name == "multislerp":
        weights = ({"weight": 0.7}, {"weight": 0.4})
    config["models"] = [
        {"model": one, "parameters": density | weights[0]},
        {"model": two, "parameters": density | weights[1]},
    ]
    if name not in ON_MODELS:
        config["base_model"] = base
    if name in ("nearswap", "passthrough", "arcee_fusion"):  # mergekit takes one model
        config["models"].pop()
        own = {"nearswap": {"t": 0.03}, "passthrough": {"scale": 0.5}}
        parameters = own.get(name, {}) | parameters
    if name == "slerp":
        config["base_model"] = one
    if parameters or name == "slerp":
        config["parameters"] = {"t": [0.2, 0.9]} | parameters if name == "slerp" else parameters
    return config


def both(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What our engine and what mergekit writes for a configuration."""
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config))
    request = read_config(path)
    assert isinstance(request, Request), request
    base = Path(request.base) if request.base else None
    inputs = [Path(model) for model in request.models]
    merge_models(inputs, base, request.candidate, folder / "ours", Output(dtype=request.dtype))
    run_mergekit(path, folder / "theirs", "both are compared")
    ours, theirs = (load_file(folder / n / "model.safetensors") for n in ("ours", "theirs"))
    return ours, theirs


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], *, masks: bool = False) -> None:
    """Every entry is the same; with ``masks``, one in a thousand may be kept by one side only.

    arcee_fusion compares a divergence of order 1e-6, computed in float32, with a threshold.
    """
    assert ours.keys() == theirs.keys()
    differing, entries = 0, sum(tensor.numel() for tensor in ours.values())
    for name, tensor in ours.items():
        if masks:
            differing += int((~torch.isclose(tensor, theirs[name], rtol=1e-6, atol=1e-6)).sum())
            continue
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
    assert differing <= entries / 1000, f"{differing} of {entries}"


@pytest.mark.parametrize("name", sorted(METHODS.keys() - RANDOM))
def test_a_configuration_gives_the_same_model(
    name: str, models: list[Path], tmp_path: Path
) -> None:
    assert_same(*both(configuration(name, models), tmp_path), masks=name == "arcee_fusion")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ties", {"normalize": False, "lambda": 0.5}),
        ("task_arithmetic", {"normalize": True, "lambda": 2.0}),
        ("linear", {"normalize": False}),
        ("breadcrumbs_ties", {"gamma": 0.1, "normalize": True}),
        ("sce", {"select_topk": 0.3}),
    ],
)
def test_method_parameters_have_the_same_meaning(
    name: str, parameters: dict[str, Any], models: list[Path], tmp_path: Path
) -> None:
    assert_same(*both(configuration(name, models, **parameters), tmp_path))


@pytest.mark.parametrize("name", ["linear", "karcher", "slerp"])
def test_a_base_that_is_not_listed_is_one_more_model(
    name: str, models: list[Path], tmp_path: Path
) -> None:
    base, one, two = map(str, models)
    config: dict[str, Any] = {"merge_method": name, "base_model": base, "dtype": "float32"}
    config["models"] = [{"model": one}] if name == "slerp" else [{"model": one}, {"model": two}]
    shared = {"linear": {"weight": 0.5}, "karcher": {}, "slerp": {"t": 0.3}}[name]
    assert_same(*both(config | {"parameters": shared}, tmp_path))
    if name == "linear":
        config["models"] = [{"model": one, "parameters": {"weight": 1.0}}]
        (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
        assert "has no weight" in str(read_config(tmp_path / "config.yml"))


@pytest.mark.parametrize("name", sorted(UNWEIGHTED))
@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_mergekit_ignores_have_no_effect(
    name: str, shared: bool, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(name, models)
    if shared:
        config["parameters"] = config.get("parameters", {}) | {"weight": 0.3}
    else:
        config["models"][-1]["parameters"]["weight"] = [0.3, 0.9]
    assert_same(*both(config, tmp_path), masks=name == "arcee_fusion")
    assert f"whose {name} has none" in capsys.readouterr().err


def test_gradients_and_filters_have_the_same_meaning(models: list[Path], tmp_path: Path) -> None:
    config = configuration("ties", models)
    for row in config["models"]:
        row["parameters"]["density"] = [{"filter": "mlp", "value": 0.3}, {"value": [0.5, 0.9]}]
    config["models"][0]["parameters"]["weight"] = [1.0, 0.2]
    assert_same(*both(config, tmp_path))


MLP = {"filter": "mlp", "value": 0.3}


@pytest.mark.parametrize("own", [MLP, [MLP], [MLP, {"filter": "q_proj", "value": [0.1, 0.9]}]])
@pytest.mark.parametrize(
    "shared", [0.8, [0.2, 0.7], [{"filter": "v_proj", "value": 0.4}, {"value": 0.6}]]
)
def test_names_that_no_filter_of_a_model_matches_have_the_shared_value(
    own: Any, shared: Any, models: list[Path], tmp_path: Path
) -> None:
    config = configuration("ties", models)
    config["models"][0]["parameters"]["weight"] = own
    for row in config["models"]:
        row["parameters"]["density"] = own
    assert_same(*both(config | {"parameters": {"weight": shared, "density": shared}}, tmp_path))


def test_a_weight_that_no_filter_gives_is_not_assumed(models: list[Path], tmp_path: Path) -> None:
    config = configuration("ties", models)
    config["models"][0]["parameters"]["weight"] = [MLP]
    with pytest.raises(AssertionError, match="a weight is missing"):
        both(config, tmp_path)
    with pytest.raises(InputError, match="Missing required parameter weight"):
        run_mergekit(tmp_path / "config.yml", tmp_path / "theirs", "a weight is missing")


def test_a_gradient_has_its_last_value_in_a_model_of_one_layer(tmp_path: Path) -> None:
    models = [tmp_path / name for name in ("base", "one", "two")]
    for folder in models:
        config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24,
                             num_hidden_layers=1, num_attention_heads=2,
                             num_key_value_heads=1)  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    wanted = configuration("ties", models)
    wanted["models"][0]["parameters"]["weight"] = [0.1, 0.9]
    assert_same(*both(wanted, tmp_path))


@pytest.mark.parametrize("case", ["zero", "two zeros", "nearly opposite", "tiny"])
def test_karcher_means_of_degenerate_tensors(case: str) -> None:
    """Directions that cancel have no length by which the mean could be divided."""
    draw = np.random.default_rng(0)
    one, two, other = draw.standard_normal((3, 60, 50)).astype(np.float32)
    tensors = {
        "zero": [one, two, 0 * other],
        "two zeros": [one, 0 * two, 0 * other],
        "nearly opposite": [one, -one + np.float32(1e-3) * two],
        "tiny": [one, two * 1e-3],
    }[case]
    shares = [1 / len(tensors)] * len(tensors)
    theirs = karcher_merge_tensors([torch.from_numpy(x) for x in tensors], shares)
    ours = karcher(np.stack(tensors), np.ones(len(tensors)))
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4])
def test_a_spherical_mean_of_opposite_tensors_is_no_longer_than_they_are(apart: float) -> None:
    """The length of the sum of two directions was a rounding error of float32."""
    one, two = np.random.default_rng(0).standard_normal((2, 60, 50)).astype(np.float32)
    stack = np.stack([one, -one + np.float32(apart) * two])
    for mean in (karcher, multislerp):
        assert np.linalg.norm(mean(stack, np.ones(2))) <= 1.5 * np.linalg.norm(one)


@pytest.fixture
def shared_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mergekit draw what the stream of our tensor i draws at its i-th call."""
    streams, generator = itertools.count(), NamedGenerator(0, "x")

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        drawn = generator.uniform(next(streams), probabilities.numel())
        kept = torch.from_numpy(drawn).reshape(probabilities.shape) < probabilities.double()
        return kept.to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


@pytest.mark.parametrize("rescale", ["l1", "none"])
@pytest.mark.parametrize("shape", [(16, 9), (1, 40)])
def test_sparsifiers_equal_those_of_mergekit(
    shape: tuple[int, int], rescale: Any, shared_chance: None
) -> None:
    from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify

    norm = RescaleNorm.l1 if rescale == "l1" else None
    stack = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)

    def theirs(method: Any, **given: Any) -> Any:
        return np.stack(
            [sparsify(torch.from_numpy(x), 0.5, method, rescale_norm=norm, **given) for x in stack]
        )

    kinds = SparsificationMethod
    dropped = drop(stack, 0.5, NamedGenerator(0, "x"), rescale=rescale)
    np.testing.assert_allclose(dropped, theirs(kinds.random), rtol=1e-6)
    if rescale == "none":
        assert np.array_equal(trim(stack, 0.5), theirs(kinds.magnitude))
        assert np.array_equal(
            outliers(stack, 0.5, 0.1), theirs(kinds.magnitude_outliers, gamma=0.1)
        )


@pytest.mark.parametrize("rescale", ["l1", "none"])
def test_magprune_equals_that_of_mergekit(rescale: Any, shared_chance: None) -> None:
    from mergekit.sparsify import RescaleNorm, della_magprune

    norm = RescaleNorm.l1 if rescale == "l1" else None
    stack = np.random.default_rng(0).standard_normal((2, 16, 9)).astype(np.float32)
    theirs = [della_magprune(torch.from_numpy(x), 0.5, 0.15, rescale_norm=norm) for x in stack]
    ours = magprune(stack, 0.5, 0.15, NamedGenerator(0, "x"), rescale=rescale)
    np.testing.assert_allclose(ours, np.stack(theirs), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_written_configuration_survives_a_round_trip(
    name: str, models: list[Path], tmp_path: Path
) -> None:
    first = tmp_path / "config.yml"
    first.write_text(yaml.safe_dump(configuration(name, models)))
    request = read_config(first)
    assert isinstance(request, Request)
    again = to_config(request.candidate, request.models, request.base, request.dtype)
    first.write_text(yaml.safe_dump(again))
    assert read_config(first) == request


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"merge_method": "moe_fusion"}, "no method moe_fusion"),
        ({"tokenizer_source": "union"}, "tokenizer_source"),
        ({"dtype": "float64"}, "float64"),
        ({"parameters": {"rescale_norm": "l1"}}, "rescale_norm"),
        ({"models": [{"model": "a+lora"}]}, "plain name"),
    ],
)
def test_unsupported_configurations_are_run_by_mergekit(
    change: dict[str, Any], reason: str, models: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(configuration("ties", models) | change))
    found = read_config(path)
    assert isinstance(found, str) and reason in found


@pytest.mark.parametrize("text", ["[1, 2", "7", "models: []", "\x00"])
def test_an_invalid_configuration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(InputError):
        read_config(path)


def test_merges_that_mergekit_cannot_express_are_refused() -> None:
    with pytest.raises(UsageError, match="--set vote=weighted"):
        to_config(Candidate("ties", 0.5), ["a", "b"], "base")
    with pytest.raises(UsageError, match="mergekit has no negmerge"):
        to_config(Candidate("negmerge"), ["a", "b"], "base")
    for name in UNWEIGHTED:
        with pytest.raises(UsageError, match=f"{name} has no weights"):
            base = None if name in ON_MODELS else "base"
            to_config(Candidate(name, weights=(1.0, 0.5)), ["a", "b"], base)
    with pytest.raises(UsageError, match="karcher merges the models themselves"):
        to_config(Candidate("karcher"), ["a", "b"], "base")


@pytest.mark.parametrize("word", ["no", "No", "OFF", "false", "0"])
def test_words_for_false_are_read_as_mergekit_reads_them(
    word: str, models: list[Path], tmp_path: Path
) -> None:
    """YAML 1.1, which mergekit reads, has more booleans than our recipes."""
    path = tmp_path / "config.yml"
    for name, key in (("ties", "normalize"), ("dare_linear", "rescale"), ("linear", "normalize")):
        found = []
        for value in ("false", word):
            text = yaml.safe_dump(configuration(name, models))
            path.write_text(f"{text}parameters: {{{key}: {value}}}\n")
            assert not yaml.safe_load(path.read_text())["parameters"][key]
            found.append(read_config(path))
        assert isinstance(found[0], Request) and found[0] == found[1]
        path.write_text(path.read_text().replace(f": {word}}}", ": never}"))
        with pytest.raises(InputError, match=f"{key} is 'never', but must be true or false"):
            read_config(path)
