"""A LoRA extracted from a model or from another kind of adapter, and what it leaves out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mergeforget.adapter import read_adapter
from mergeforget.adapter_config import NO_CHANGE_OF_WEIGHTS
from mergeforget.cli import main
from mergeforget.errors import InputError
from mergeforget.merge.extract import extract_lora
from mergeforget.merge.inputs import check_plain
from mergeforget.tensors import read_safetensors, write_safetensors

IDS = torch.tensor([[3, 5, 7, 11, 2, 30]])
TARGETS = ["q_proj", "up_proj", "down_proj"]
BLOCKS = BdLoraConfig(
    target_modules_bd_a=["q_proj"], target_modules_bd_b=["up_proj", "down_proj"], nblocks=2
)
KINDS: dict[str, Any] = {
    "DoRA": peft.LoraConfig(r=3, use_dora=True, target_modules=TARGETS),
    "PiSSA": peft.LoraConfig(r=3, init_lora_weights="pissa", target_modules=TARGETS),
    "OLoRA": peft.LoraConfig(r=3, init_lora_weights="olora", target_modules=TARGETS),
    "LoHa": peft.LoHaConfig(r=2, target_modules=TARGETS),
    "LoKr": peft.LoKrConfig(r=2, target_modules=TARGETS),
    "IA3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "OFT": peft.OFTConfig(r=2, oft_block_size=0, target_modules=TARGETS),
    "KaSA": peft.LoraConfig(r=3, target_modules=TARGETS, kasa_config=KasaConfig()),
    "VeRA": peft.VeraConfig(r=8, target_modules=["q_proj"]),
    "BD-LoRA": peft.LoraConfig(r=4, target_modules=TARGETS, use_bdlora=BLOCKS),
}


def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_adapter_becomes_a_lora_with_its_logits(
    kind: str, tiny_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), KINDS[kind])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(str(tmp_path / "odd"))
    wanted = logits(tiny_folder, tmp_path / "odd")
    words = ["extract-lora", str(tmp_path / "odd"), "--base", str(tiny_folder), "--rank", "64"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "lora"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["energy_lost"] < 1e-6
    torch.testing.assert_close(logits(tiny_folder, tmp_path / "lora"), wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(wanted, logits(tiny_folder), atol=1e-3)


def test_tensors_that_lora_cannot_change_are_reported(tiny_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    tensors, _ = read_safetensors(model / "model.safetensors")
    changed = {name: x.copy() for name, x in tensors.items()}
    changed["model.layers.0.self_attn.q_proj.weight"][0, 0] += 3.0
    changed["model.norm.weight"][0] += 4.0  # squared: 9 and 16 of 25
    write_safetensors(model / "model.safetensors", changed)
    found = extract_lora(model, tiny_folder, 4)
    assert found.report["energy_left_out"] == pytest.approx(16 / 25)
    assert found.report["left_out"] == "model.norm.weight"
    assert list(found.adapter.deltas) == ["model.layers.0.self_attn.q_proj"]
    write_safetensors(model / "model.safetensors", tensors)
    with pytest.raises(InputError, match="nothing to extract"):
        extract_lora(model, tiny_folder, 4)


def test_quantised_weights_that_differ_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """As gpt-oss stores its experts; their difference was left out without a word."""
    tensors, _ = read_safetensors(tiny_folder / "model.safetensors")
    packed = {"model.layers.0.mlp.experts.down_proj_blocks": np.arange(8, dtype=np.uint8)}
    base, model = (shutil.copytree(tiny_folder, tmp_path / name) for name in ("base", "model"))
    write_safetensors(base / "model.safetensors", tensors | packed)
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] += 3.0
    write_safetensors(model / "model.safetensors", tensors | packed)
    assert extract_lora(model, base, 4).report["modules"] == 1
    changed = {name: values + np.uint8(1) for name, values in packed.items()}
    write_safetensors(model / "model.safetensors", tensors | changed)
    with pytest.raises(InputError, match="down_proj_blocks .* differs .* both must be equal"):
        extract_lora(model, base, 4)


def test_a_fine_tuned_model_becomes_an_adapter_of_the_rank(
    save_models: Callable[..., list[Path]], tmp_path: Path
) -> None:
    base, one, _ = save_models(tmp_path)
    found = extract_lora(one, base, 2, svd="exact")
    assert {delta.rank for delta in found.adapter.deltas.values()} == {2}
    assert 0 < found.report["energy_lost"] < 1 and "layernorm" in found.report["left_out"]
    assert {"lm_head", "model.embed_tokens"} < found.adapter.deltas.keys()
    found.save(tmp_path / "out")
    assert read_adapter(tmp_path / "out").base == str(base)
    whole = extract_lora(one, base, 1000)  # what is recorded is the rank that was reached
    assert whole.candidate.rank == max(d.rank for d in whole.adapter.deltas.values()) < 1000


def test_an_adapter_that_changes_no_weight_is_refused_by_name(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config)
    model.save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        extract_lora(tmp_path / "prompt", tiny_folder, 4)
    with pytest.raises(InputError, match="'PROMPT_TUNING'.* no LoRA is equivalent"):
        read_adapter(tmp_path / "prompt")


def test_every_kind_of_prompt_learning_is_known_not_to_change_weights() -> None:
    prompts = {
        kind.value
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if issubclass(config, PromptLearningConfig)
        or getattr(config, "is_prompt_learning", 0) is True
    }
    assert {"PREFIX_TUNING", "CPT"} <= prompts <= set(NO_CHANGE_OF_WEIGHTS)


def test_block_diagonal_factors_are_refused_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    odd = trained(KINDS["BD-LoRA"], tiny_folder, tmp_path / "odd")
    with pytest.raises(InputError, match=r"use_bdlora.*extract-lora .* --rank 4 "):
        read_adapter(odd)


def trained(config: Any, base: Path, folder: Path) -> Path:
    """An adapter with random trained parameters."""
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


EMBEDDINGS = {
    "tokens": peft.TrainableTokensConfig(token_indices=[3, 7]),
    "LoRA and tokens": peft.LoraConfig(r=3, target_modules=TARGETS, trainable_token_indices=[3, 7]),
    "LoRA and an embedding": peft.LoraConfig(
        r=3, target_modules=TARGETS, modules_to_save=["embed_tokens"]
    ),
    "LoRA on the embedding": peft.LoraConfig(r=3, target_modules=[*TARGETS, "embed_tokens"]),
    "LoHa on the output layer": peft.LoHaConfig(r=2, target_modules=[*TARGETS, "lm_head"]),
}


@pytest.mark.parametrize(
    ("kind", "tied"),
    [*((kind, True) for kind in EMBEDDINGS), ("LoRA and tokens", False),
     ("LoRA and an embedding", False)],
)  # fmt: skip
def test_a_trained_embedding_becomes_a_lora(kind: str, tied: bool, tmp_path: Path) -> None:
    base, config = tmp_path / "base", EMBEDDINGS[kind]
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        )
    ).save_pretrained(base)  # fmt: skip
    odd = trained(config, base, tmp_path / "odd")
    wanted = logits(base, odd)
    found = extract_lora(odd, base, 32)
    assert found.report["energy_left_out"] == 0 and found.report["energy_lost"] < 1e-6
    found.save(tmp_path / "lora")
    torch.testing.assert_close(logits(base, tmp_path / "lora"), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied by the training"])
def test_a_fine_tuned_model_with_a_tied_base_becomes_a_lora(untied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    model: Any = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    if untied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "model")
    found = extract_lora(tmp_path / "model", tmp_path / "base", 16, svd="exact")
    assert {"lm_head", "transformer.wte", "transformer.wpe"} < found.adapter.deltas.keys()
    assert found.report["energy_left_out"] == 0
    found.save(tmp_path / "lora")
    wanted = logits(tmp_path / "model")
    torch.testing.assert_close(
        logits(tmp_path / "base", tmp_path / "lora"), wanted, rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(wanted, logits(tmp_path / "base"), atol=1e-3)


@pytest.mark.parametrize(
    "more",
    [{"alora_invocation_tokens": [7, 11], "task_type": "CAUSAL_LM"},
     {"layer_replication": [[0, 2], [1, 2]]}],
)  # fmt: skip
def test_adapters_that_do_not_change_weights_are_refused(
    more: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], **more)
    odd = trained(config, tiny_folder, tmp_path / "odd")
    with pytest.raises(InputError, match=next(iter(more))):
        extract_lora(odd, tiny_folder, 4)
    with pytest.raises(InputError, match="extract-lora` cannot convert it"):
        check_plain(read_adapter(odd))
