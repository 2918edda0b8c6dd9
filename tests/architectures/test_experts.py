"""Adapters on experts in one parameter are read, merged and folded as PEFT computes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAST, build, save

from mergeforget.adapter import Adapter, read_adapter, write_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.activation_grams import grams_of
from mergeforget.merge.apply import applied
from mergeforget.merge.checkpoint.full import fold_adapters
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.multi_adapter import UnfitError, side_by_side

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
IDS = torch.arange(5, 25)[None]
ALONE = Candidate("linear", weights=(1.0,), space="delta")


def peft_model(base: Any, seed: int = 0, **settings: Any) -> Any:
    """A copy of the base with a random adapter on attention and experts."""
    from peft import LoraConfig, get_peft_model

    given: dict[str, Any] = {
        "target_modules": ["q_proj"],
        "target_parameters": EXPERTS,
        "lora_alpha": 8,
    } | settings
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, **given)).eval()
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1, generator=draw)
    return model


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])  # (out, in) and (in, out)
def test_experts_are_applied_and_folded_as_peft_merges_them(name: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = build(name, **FAST[name])
    trained = peft_model(base)
    trained.save_pretrained(tmp_path / "adapter")
    meant = weights(copy.deepcopy(trained).merge_and_unload())
    adapter = read_adapter(tmp_path / "adapter")
    before = weights(base)
    with applied(base, adapter):
        assert largest(weights(base), meant) == 0
    assert largest(weights(base), before) == 0

    write_adapter(adapter, tmp_path / "again")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "again")
    assert largest(weights(again.merge_and_unload()), meant) < 1e-6

    save(base, tmp_path / "split")  # as the hub stores it: each expert's matrices by themselves
    base.save_pretrained(tmp_path / "fused", save_original_format=False)
    for form in ("split", "fused"):
        fold_adapters(tmp_path / form, [adapter], ALONE, tmp_path / f"{form}-full")
        read = AutoModelForCausalLM.from_pretrained(tmp_path / f"{form}-full")
        assert largest(weights(read), meant) < 1e-6


def both(tmp_path: Path, base: Any) -> list[Adapter]:
    for seed in (1, 2):
        peft_model(base, seed).save_pretrained(tmp_path / f"a{seed}")
    return [read_adapter(tmp_path / f"a{seed}") for seed in (1, 2)]


def test_a_merge_of_experts_is_the_weighted_sum_of_their_changes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = build("mixtral")
    save(base, tmp_path / "base")
    pair = both(tmp_path, base)
    origin, summed = weights(base), {}
    for name, value in origin.items():
        summed[name] = value.clone()
    for adapter, weight in zip(pair, (0.7, 0.3), strict=True):
        with applied(base, adapter):
            for name, value in weights(base).items():
                summed[name] += weight * (value - origin[name])
    exact = Candidate("cat", weights=(0.7, 0.3), space="delta")
    merged = merge_adapters(pair, exact).adapter
    write_adapter(merged, tmp_path / "merged")
    with applied(base, read_adapter(tmp_path / "merged")):
        assert largest(weights(base), summed) < 1e-5
    dense = Candidate("linear", weights=(0.7, 0.3), space="delta")
    fold_adapters(tmp_path / "base", pair, dense, tmp_path / "full")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert largest(weights(read), summed) < 1e-5


def test_ties_trims_experts_equally_in_adapters_and_whole_models(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = build("mixtral")
    save(base, tmp_path / "base")
    pair = both(tmp_path, base)
    ties = Candidate("ties", 0.5, (1.0, 1.0), space="delta", rank=32)
    merged = merge_adapters(pair, ties).adapter  # full rank, so that no energy is truncated
    fold_adapters(tmp_path / "base", pair, Candidate("ties", 0.5, (1.0, 1.0), space="delta"),
                  tmp_path / "full")  # fmt: skip
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    with applied(base, merged):
        assert largest(weights(base), weights(read)) < 1e-4


def test_unsupported_operations_on_experts_are_refused_by_name(tmp_path: Path) -> None:
    base = build("mixtral")
    save(base, tmp_path / "base")
    pair = both(tmp_path, base)
    with pytest.raises(UnfitError, match="expert"), side_by_side(base, pair):
        pass
    with pytest.raises(UsageError, match="needs no --data"):
        grams_of(str(tmp_path / "base"), pair, [tmp_path / "x.jsonl"], Candidate("regmean"))
    with (
        pytest.raises(InputError, match="trained on another model"),
        applied(build("llama"), pair[0]),
    ):
        pass
    path = tmp_path / "a1" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rank_pattern": {"experts.down_proj": 2}}))
    with pytest.raises(InputError, match="with one rank"):
        read_adapter(tmp_path / "a1")
