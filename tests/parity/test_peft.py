"""Parity with PEFT 0.21.2: the functions, and add_weighted_adapter reloaded from the disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from transformers import AutoModelForCausalLM

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.candidate import Candidate, Space
from mergeforget.merge.engine import MergeSettings, merge_adapters, sweep, write_candidate
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.methods import MERGE_METHODS

FACTORS = ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
PRODUCTS = ["svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"]
THEIRS: dict[str, Callable[..., Any]] = {
    "linear": merge_utils.task_arithmetic,
    "ties": merge_utils.ties,
    "dare_linear": merge_utils.dare_linear,
    "dare_ties": merge_utils.dare_ties,
    "magnitude_prune": merge_utils.magnitude_prune,
}


def equal_bits(ours: Any, theirs: torch.Tensor) -> bool:
    return np.array_equal(np.asarray(ours).view(np.int32), theirs.numpy().view(np.int32))


@pytest.fixture
def shared_chance(monkeypatch: pytest.MonkeyPatch) -> Callable[[NamedGenerator], None]:
    """Let PEFT drop the entries that ours drops: its Bernoulli draws come from our streams."""

    def use(generator: NamedGenerator) -> None:
        streams = itertools.count()

        def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
            density = float(probabilities.flatten()[0].double())
            kept = generator.below(density, next(streams), probabilities.numel())
            return torch.from_numpy(kept.reshape(probabilities.shape)).float()

        monkeypatch.setattr(torch, "bernoulli", bernoulli)

    return use


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("density", [0.125, 0.5, 0.8125])  # exact in float32, as PEFT draws them
@pytest.mark.parametrize("shape", [(16, 8), (3, 37), (1, 9)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4), (1.0, 0.3, 2.0)])
def test_functions_are_bit_identical_to_those_of_peft(
    name: str,
    density: float,
    shape: tuple[int, int],
    weights: tuple[float, ...],
    shared_chance: Callable[[NamedGenerator], None],
) -> None:
    stack = np.random.default_rng(0).standard_normal((len(weights), *shape)).astype(np.float32)
    shared_chance(NamedGenerator(0, "module"))
    given: dict[str, Any] = {} if name == "linear" else {"density": density}
    theirs = THEIRS[name](list(torch.from_numpy(stack)), torch.tensor(weights), **given)
    if name.startswith("dare"):
        given["generator"] = NamedGenerator(0, "module")
    merge = MERGE_METHODS.get(name).fn
    assert equal_bits(merge(stack, np.array(weights), **given), theirs)
    if name.startswith("dare"):
        given["generator"] = NamedGenerator(0, "module")
    assert equal_bits(merge(torch.from_numpy(stack), torch.tensor(weights), **given), theirs)


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_sign_count_equals_frequency_in_peft(
    name: str, shared_chance: Callable[[NamedGenerator], None]
) -> None:
    stack = np.random.default_rng(1).standard_normal((3, 16, 8)).astype(np.float32)
    weights = torch.tensor([1.0, 0.5, -1.0])
    shared_chance(NamedGenerator(0, "module"))
    theirs = THEIRS[name](
        list(torch.from_numpy(stack)), weights, 0.5, majority_sign_method="frequency"
    )
    given = {"generator": NamedGenerator(0, "module")} if name == "dare_ties" else {}
    ours = MERGE_METHODS.get(name).fn(stack, weights.numpy(), density=0.5, sign="count", **given)
    assert equal_bits(ours, theirs)


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Path:
    return tiny_folder


def make_adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | config
    wrapped = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    wrapped.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pair")
    return [
        make_adapter(base, root / "over", 1),
        make_adapter(base, root / "under", 2, lora_alpha=4),
    ]


def open_peft(base: Path, folder: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)


def peft_s_merge(base: Path, pair: list[Path], out: Path, **given: Any) -> Adapter:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), pair[0], "over")
    model.load_adapter(pair[1], "under")
    model.add_weighted_adapter(["over", "under"], adapter_name="merged", **given)
    model.save_pretrained(str(out), selected_adapters=["merged"])
    return read_adapter(out / "merged")


def assert_same_tensors(ours: Adapter, theirs: Adapter) -> None:
    assert ours.deltas.keys() == theirs.deltas.keys()
    for module, delta in ours.deltas.items():
        other = theirs.deltas[module]
        assert delta.scaling == other.scaling, module
        assert equal_bits(delta.a, torch.from_numpy(other.a)), module
        assert equal_bits(delta.b, torch.from_numpy(other.b)), module


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4)])
@pytest.mark.parametrize("name", ["linear", "ties", "magnitude_prune", "cat"])
def test_adapter_folder_equals_add_weighted_adapter(
    base: Path, pair: list[Path], tmp_path: Path, name: str, weights: tuple[float, float]
) -> None:
    given = {"density": 0.6} if name in ("ties", "magnitude_prune") else {}
    theirs = peft_s_merge(
        base, pair, tmp_path, combination_type=name, weights=list(weights), **given
    )
    merged = merge_adapters(
        [read_adapter(p) for p in pair], Candidate(name, given.get("density"), weights)
    )
    write_candidate(merged, tmp_path / "ours")
    assert_same_tensors(read_adapter(tmp_path / "ours"), theirs)


@pytest.mark.parametrize("weights", [(1.0, -0.5), (-0.7, 0.4)])
@pytest.mark.parametrize("name", ["linear", "ties", "magnitude_prune"])
def test_a_negative_weight_of_an_embedding_has_the_sign_where_peft_puts_it(
    base: Path, tmp_path: Path, name: str, weights: tuple[float, float]
) -> None:
    targets = ["q_proj", "embed_tokens"]
    pair = [
        make_adapter(base, tmp_path / side, seed, target_modules=targets)
        for seed, side in enumerate(("over", "under"))
    ]
    given = {} if name == "linear" else {"density": 0.5}
    theirs = peft_s_merge(
        base, pair, tmp_path, combination_type=name, weights=list(weights), **given
    )
    adapters = [read_adapter(p) for p in pair]
    merged = merge_adapters(adapters, Candidate(name, given.get("density"), weights))
    assert merged.adapter.embeddings == theirs.embeddings != frozenset()
    for module, delta in theirs.deltas.items():
        found = merged.adapter.deltas[module]
        np.testing.assert_allclose(found.dense(), delta.dense(), rtol=1e-5, atol=1e-6)
    if name == "linear":
        exact = {
            m: sum(w * a.deltas[m].dense() for w, a in zip(weights, adapters, strict=True))
            for m in theirs.deltas
        }
        error = sum(np.sum((merged.adapter.deltas[m].dense() - x) ** 2) for m, x in exact.items())
        share = error / sum(np.sum(x**2) for x in exact.values())
        assert merged.report["space_error"] == pytest.approx(np.sqrt(share), rel=1e-4)


def test_the_sum_of_rslora_adapters_lacks_the_factor_that_peft_adds(
    base: Path, tmp_path: Path
) -> None:
    """PEFT keeps ``use_rslora`` with lora_alpha = rank, which scales the sum by sqrt(rank)."""
    pair = [make_adapter(base, tmp_path / f"{i}", i, use_rslora=True) for i in (1, 2)]
    theirs = peft_s_merge(base, pair, tmp_path, combination_type="cat", weights=[1.0, -0.5])
    one, two = (read_adapter(folder) for folder in pair)
    ours = merge_adapters([one, two], Candidate("cat", weights=(1.0, -0.5))).adapter
    for module, delta in ours.deltas.items():
        wanted = one.deltas[module].dense() - 0.5 * two.deltas[module].dense()
        np.testing.assert_allclose(delta.dense(), wanted, rtol=1e-4, atol=1e-5)
        found = theirs.deltas[module].dense()
        np.testing.assert_allclose(found, 8**0.5 * wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("svd", ["fast", "exact"])
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("name", ["svd", "ties_svd", "magnitude_prune_svd"])
def test_products_span_the_delta_of_peft(
    base: Path, pair: list[Path], tmp_path: Path, name: str, rank: int | None, svd: Any
) -> None:
    """Since 0.21; before, PEFT applied the scaling twice."""
    weights = (1.0, -0.5)
    given = {} if name == "svd" else {"density": 0.7}
    theirs = peft_s_merge(
        base,
        pair,
        tmp_path,
        combination_type=name,
        weights=list(weights),
        svd_rank=rank,
        **given,
    )
    candidate = Candidate(name, given.get("density"), weights, rank=rank)
    ours = merge_adapters(
        [read_adapter(p) for p in pair], candidate, MergeSettings(svd=svd)
    ).adapter
    for module, delta in ours.deltas.items():
        wanted = theirs.deltas[module].dense()
        assert delta.rank == theirs.deltas[module].rank
        apart = np.linalg.norm(delta.dense() - wanted) / np.linalg.norm(wanted)
        # If two singular values at the cut are close, two truncations are nearly equally good.
        assert apart < (5e-5 if svd == "exact" or name == "svd" else 2e-2), module


@pytest.mark.parametrize("name", ["ties", "ties_svd", "svd", "cat"])
def test_merged_folder_opens_with_peft_and_gives_the_expected_logits(
    base: Path, pair: list[Path], tmp_path: Path, name: str
) -> None:
    given = 0.7 if name.startswith("ties") else None
    merged = merge_adapters([read_adapter(p) for p in pair], Candidate(name, given))
    write_candidate(merged, tmp_path / "merged")
    tokens = torch.arange(12).reshape(2, 6)
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for module, delta in merged.adapter.deltas.items():
            plain.get_submodule(module).weight.add_(torch.from_numpy(delta.dense()))
        wanted = plain(tokens).logits
        reloaded = open_peft(base, tmp_path / "merged")
        torch.testing.assert_close(reloaded(tokens).logits, wanted, rtol=1e-4, atol=1e-5)


def test_ranks_and_alphas_that_differ_by_module_open_with_peft(base: Path, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}}
    over = make_adapter(base, tmp_path / "over", 1, use_rslora=True, **patterns)
    under = make_adapter(base, tmp_path / "under", 2, r=6, lora_alpha=3)
    adapters = [read_adapter(over), read_adapter(under)]
    merged = merge_adapters(adapters, Candidate("cat", weights=(1.0, 0.5)))
    write_candidate(merged, tmp_path / "merged")
    both = open_peft(base, over)
    both.load_adapter(under, "under")
    reloaded = open_peft(base, tmp_path / "merged")
    for module, delta in merged.adapter.deltas.items():
        layer = both.get_submodule(f"base_model.model.{module}")
        wanted = layer.get_delta_weight("default") + 0.5 * layer.get_delta_weight("under")
        layer = reloaded.get_submodule(f"base_model.model.{module}")
        torch.testing.assert_close(layer.get_delta_weight("default"), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(delta.dense()), wanted, rtol=1e-5, atol=1e-6)


def test_the_version_that_parity_names_is_installed() -> None:
    assert tuple(int(x) for x in peft.__version__.split(".")[:2]) >= (0, 21)


def test_a_sweep_is_bit_identical_to_separate_merges(pair: list[Path]) -> None:
    adapters = [read_adapter(p) for p in pair]
    densities = [0.1, 0.35, 0.5, 0.8, 1.0]
    spaces: list[Space] = ["factors", "delta"]
    for method in ("ties", "magnitude_prune", "dare_ties"):
        for space in spaces:
            candidate = Candidate(method, space=space)
            for density, one in zip(densities, sweep(adapters, candidate, densities), strict=True):
                alone = merge_adapters(adapters, replace(candidate, density=density))
                assert one.candidate == alone.candidate
                assert_same_tensors(one.adapter, alone.adapter)
