"""Changes other than B @ A are folded into the base as PEFT does, and merged exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from mergeforget.adapter import read_adapter
from mergeforget.candidate import Candidate, Space
from mergeforget.errors import InputError, NumericError, UsageError
from mergeforget.files import read_json, write_json
from mergeforget.merge.checkpoint.compatible import read_vocabulary
from mergeforget.merge.checkpoint.full import fold_adapters
from mergeforget.merge.engine import MergeSettings, merge_adapters
from mergeforget.model_adapters import with_adapter
from mergeforget.model_files import stored_template

OUTPUT_TOO = ["q_proj", "up_proj", "lm_head"]
KINDS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "bias of lora_B": {"lora_bias": True},
    "every bias": {"bias": "all"},
    "biases of the modules": {"bias": "lora_only"},
    "whole modules": {"modules_to_save": ["lm_head", "norm"]},
    "LoRA on the output layer": {"target_modules": OUTPUT_TOO},
    "DoRA on the output layer": {"target_modules": OUTPUT_TOO, "use_dora": True},
    "both kinds of bias": {"bias": "all", "lora_bias": True},
    "all but DoRA": {"bias": "all", "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with biases and a separate output layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an adapter with PEFT after changing every trained weight."""

    def write(name: str, seed: int, **config: Any) -> Path:
        settings: dict[str, Any] = {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "up_proj"],
        } | config
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    return write


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def unloaded(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of PEFT's own merge of one adapter into the base."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    found: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_folding_one_adapter_equals_merging_with_peft(
    base: Path, make: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    adapter = make("odd", 1, **KINDS[kind])
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(base, [read_adapter(adapter)], itself, tmp_path / "full")
    wanted, plain = unloaded(base, adapter), weights(base)
    changed = 0
    for name, tensor in weights(tmp_path / "full").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(tensor, plain[name])
    assert changed == sum(not torch.equal(wanted[n], x) for n, x in plain.items()) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_several_are_merged_as_changes_of_the_base(
    base: Path, make: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    pair = [make("one", 1, **KINDS[kind]), make("two", 2, **KINDS[kind])]
    candidate = Candidate("linear", weights=(0.7, -0.4), space="delta")
    adapters = [read_adapter(folder) for folder in pair]
    fold_adapters(
        base, adapters, candidate, tmp_path / "full", how=MergeSettings(precision="float64")
    )
    one, two = (unloaded(base, folder) for folder in pair)
    plain = weights(base)
    for name, tensor in weights(tmp_path / "full").items():
        wanted = plain[name] + 0.7 * (one[name] - plain[name]) - 0.4 * (two[name] - plain[name])
        torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-5)


def test_tensors_without_factors_are_merged_by_the_same_method(
    base: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    odd = KINDS["all but DoRA"]
    adapters = [read_adapter(make("one", 1, **odd)), read_adapter(make("two", 2, **odd))]
    spaces: list[Space] = ["factors", "delta"]
    for space in spaces:
        candidate = Candidate("ties", 0.5, space=space)
        fold_adapters(base, adapters, candidate, tmp_path / space)
    factors, delta = weights(tmp_path / "factors"), weights(tmp_path / "delta")
    same = {name for name in factors if torch.equal(factors[name], delta[name])}
    assert "lm_head.weight" in same and "model.layers.0.self_attn.q_proj.weight" not in same
    assert not torch.equal(factors["lm_head.weight"], weights(base)["lm_head.weight"])


@pytest.mark.parametrize("targets", [["attn.c_proj", "lm_head"], ["lm_head", "c_attn"], ["c_fc"]])
def test_weights_that_are_stored_transposed_fold_as_peft_merges_them(
    tmp_path: Path, targets: list[str]
) -> None:
    """Square weights too; ``fan_in_fan_out``, one value for all modules, is ignored."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2}
    net, base, adapter = GPT2LMHeadModel, tmp_path / "gpt2", tmp_path / "adapter"
    net(GPT2Config(**sizes, tie_word_embeddings=False)).save_pretrained(base)
    config = LoraConfig(target_modules=targets, init_lora_weights=False)
    get_peft_model(net.from_pretrained(base), config).save_pretrained(str(adapter))
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(base, [read_adapter(adapter)], itself, tmp_path / "full")
    wanted = unloaded(base, adapter)
    for name, tensor in weights(tmp_path / "full").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


FROZEN = "base_model.model.lm_head.base_layer.weight"


def test_lora_and_a_trained_output_layer_add_up(
    base: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT stores the layer's weight with its factors; here it differs from the base's."""
    adapter = read_adapter(make("head", 1, target_modules=OUTPUT_TOO))
    trained = adapter.extras[FROZEN] + 0.5
    adapter.extras[FROZEN] = trained
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(base, [adapter], itself, tmp_path / "full")
    wanted = trained + adapter.deltas["lm_head"].dense()
    found = weights(tmp_path / "full")["lm_head.weight"]
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="without --rank"):
        fold_adapters(base, [adapter, adapter], Candidate("linear"), tmp_path / "out")
    adapter.extras[FROZEN] = trained[1:]
    with pytest.raises(InputError, match=r"changes lm_head\.weight with the shapes \(39, 16\) and"):
        fold_adapters(base, [adapter], itself, tmp_path / "out")
    dora = read_adapter(make("dora", 2, target_modules=OUTPUT_TOO, use_dora=True))
    dora.extras[FROZEN] = trained
    with pytest.raises(InputError, match=r"changes lm_head\.weight by DoRA"):
        fold_adapters(base, [dora], itself, tmp_path / "out")


def test_a_frozen_output_layer_stored_with_lora_is_not_a_delta(
    base: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    names = ("one", "two")
    pair = [read_adapter(make(n, i, target_modules=OUTPUT_TOO)) for i, n in enumerate(names)]
    candidate = Candidate("ties", 0.5)
    merged = merge_adapters(pair, candidate).adapter
    assert "lm_head" in merged.deltas and not merged.extras
    fold_adapters(base, pair, candidate, tmp_path / "full")
    fold_adapters(base, [merged], Candidate("linear", weights=(1.0,)), tmp_path / "again")
    one, two = (weights(tmp_path / name) for name in ("full", "again"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-6)


def test_a_bias_that_only_one_adapter_changed_is_merged(
    base: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    one, two = (read_adapter(make(name, 1, bias="lora_only")) for name in ("one", "two"))
    name, plain = "model.layers.0.self_attn.q_proj.bias", weights(base)
    key = f"base_model.model.{name.removesuffix('bias')}base_layer.bias"
    two.extras[key][:] = plain[name].numpy()
    fold_adapters(base, [one, two], Candidate("linear", space="delta"), tmp_path / "full")
    found = weights(tmp_path / "full")[name]
    torch.testing.assert_close(found, torch.from_numpy(one.extras[key]), rtol=1e-5, atol=1e-6)


def test_changes_that_cannot_be_folded_are_refused(
    base: Path, make: Callable[..., Path], tiny_folder: Path, tmp_path: Path
) -> None:
    dora = read_adapter(make("dora", 1, use_dora=True))
    plain, out = read_adapter(make("plain", 2)), tmp_path / "out"
    for candidate in (Candidate("linear"), Candidate("svd", rank=2), Candidate("cat")):
        with pytest.raises(UsageError, match="without --rank"):
            fold_adapters(base, [dora, plain], candidate, out)
    saved = read_adapter(make("saved", 3, modules_to_save=["lm_head"]))
    with pytest.raises(InputError, match=r"lm_head\.weight.*--modules common"):
        fold_adapters(base, [saved, plain], Candidate("ties", 0.5, space="delta"), out)
    alone = Candidate("linear", weights=(1.0,), space="delta")
    with pytest.raises(InputError, match="changes a tensor of|which the adapter changes"):
        fold_adapters(tiny_folder, [saved], alone, out)
    saved.extras["base_model.model.lm_head.weight"][0, 0] = torch.nan
    with pytest.raises(NumericError, match=r"'saved' contains NaN in .*lm_head\.weight"):
        fold_adapters(base, [saved], alone, out)
    odd = read_adapter(make("tokens", 4, trainable_token_indices=[1, 2]))
    with pytest.raises(InputError, match="token embeddings were trained"):
        fold_adapters(base, [odd], alone, out)
    assert not out.exists()


def test_a_bias_of_lora_b_needs_a_bias_in_the_base(
    tiny_folder: Path, write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    module = "model.layers.0.mlp.up_proj"
    bias = {f"base_model.model.{module}.lora_B.bias": np.ones(64, np.float32)}
    adapter = read_adapter(
        write_lora("odd", modules={module: (64, 32)}, tensors=bias, lora_bias=True)
    )
    with pytest.raises(InputError, match=r"has no .*up_proj.bias, to which .* lora_bias"):
        fold_adapters(tiny_folder, [adapter], Candidate("linear", weights=(1.0,), space="delta"),
                      tmp_path / "full")  # fmt: skip


def test_fan_in_fan_out_is_ignored_for_linear_layers(
    base: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT resets the flag; a square weight shows its orientation by nothing else."""
    adapter = make("square", 1, target_modules=["q_proj", "o_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is False
    config["fan_in_fan_out"] = True
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(base, [read_adapter(adapter)], itself, tmp_path / "full")
    wanted = unloaded(base, adapter)
    for name, tensor in weights(tmp_path / "full").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    unknown = shutil.copytree(base, tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "mine"}')
    with pytest.raises(InputError, match=r"layout of .*o_proj is unknown"):
        fold_adapters(unknown, [read_adapter(adapter)], itself, tmp_path / "other")


def test_dora_on_an_embedding_is_refused_by_name(
    base: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    targets = ["q_proj", "embed_tokens"]
    adapter = read_adapter(make("dora", 1, target_modules=targets, use_dora=True))
    itself = Candidate("linear", weights=(1.0,), space="delta")
    with pytest.raises(InputError, match=r"DoRA on the embedding .*embed_tokens.*extract-lora"):
        fold_adapters(base, [adapter], itself, tmp_path / "full")


def resized_adapter(base: Path, folder: Path, seed: int = 0, count: int = 42, **config: Any) -> Any:
    """Train on a base with two more tokens, as fine-tuning with a new chat template does."""
    torch.manual_seed(3)  # of the new rows
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(count)
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"]} | config))
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(str(folder))
    build_tokenizer().save_pretrained(folder)
    return wrapped


def check_same_logits(folder: Path, wrapped: Any) -> None:
    """Compare a folded model of 42 tokens with PEFT's, also on the tokens that were added."""
    folded: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert folded.config.vocab_size == 42 == len(folded.get_input_embeddings().weight)
    ids = torch.tensor([[5, 41, 40, 7, 39]])
    with torch.no_grad():
        wanted = wrapped.eval()(ids).logits
        torch.testing.assert_close(folded(ids).logits, wanted, rtol=1e-5, atol=1e-5)


def tied_copy(base: Path, folder: Path) -> None:
    config = LlamaConfig.from_pretrained(base)
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    ],
    ids=["stored by PEFT", "trained", "LoRA on both"],
)
def test_an_adapter_of_a_base_with_new_tokens_is_folded_with_their_rows(
    tied: bool, config: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    (tied_copy if tied else shutil.copytree)(base, tmp_path / "base")
    wrapped = resized_adapter(tmp_path / "base", tmp_path / "adapter", **config)
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(tmp_path / "base", [read_adapter(tmp_path / "adapter")], itself, tmp_path / "out")
    check_same_logits(tmp_path / "out", wrapped)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        tmp_path / "adapter" / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_lora_on_one_embedding_stores_the_new_rows_of_a_tied_base_only(
    module: str, base: Path, tmp_path: Path
) -> None:
    """PEFT does not store the other matrix, whose new rows are random in a base without a tie."""
    itself = Candidate("linear", weights=(1.0,), space="delta")
    resized_adapter(base, tmp_path / "adapter", target_modules=["q_proj", module])
    with pytest.raises(InputError, match="rows for new tokens in .*, but not in"):
        fold_adapters(base, [read_adapter(tmp_path / "adapter")], itself, tmp_path / "out")
    tied_copy(base, tmp_path / "tied")
    wrapped = resized_adapter(tmp_path / "tied", tmp_path / "a", target_modules=["q_proj", module])
    fold_adapters(tmp_path / "tied", [read_adapter(tmp_path / "a")], itself, tmp_path / "out")
    check_same_logits(tmp_path / "out", wrapped)


def test_the_bias_of_an_output_layer_gets_entries_for_new_tokens(tmp_path: Path) -> None:
    config = PhiConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = PhiForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "base")
    wrapped = resized_adapter(tmp_path / "base", tmp_path / "adapter")
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(tmp_path / "base", [read_adapter(tmp_path / "adapter")], itself, tmp_path / "out")
    check_same_logits(tmp_path / "out", wrapped)


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({"vocab_size": 40}, {"vocab_size": 42}),
        ({}, {"vocab_size": 42}),  # the default of the model's class
        ({"text_config": {"a": 1}}, {"text_config": {"a": 1, "vocab_size": 42}}),
        (
            {"text_config": {"vocab_size": 40}, "audio_config": {"vocab_size": 51}},
            {"text_config": {"vocab_size": 42}, "audio_config": {"vocab_size": 51}},
        ),
        (
            {"talker": {"text_config": {"vocab_size": 40}}},
            {"talker": {"text_config": {"vocab_size": 42}}},
        ),
    ],
)
def test_the_config_states_the_number_of_tokens_of_the_text_model_only(
    sections: dict[str, Any], wanted: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    resized_adapter(base, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "base")
    write_json(tmp_path / "base" / "config.json", {"model_type": "llama"} | sections)
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(tmp_path / "base", [read_adapter(tmp_path / "adapter")], itself, tmp_path / "out")
    written = read_json(tmp_path / "out" / "config.json")
    assert {key: written[key] for key in wanted} == wanted
    assert written.keys() == {"model_type", "dtype", *wanted}


def test_the_tokenizer_with_the_new_tokens_replaces_that_of_the_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(base, tmp_path / "base")
    for name in ("chat_template.jinja", "added_tokens.json"):  # would precede the adapter's
        (tmp_path / "base" / name).write_text("{}")
    for i, name in enumerate(("one", "two")):
        resized_adapter(base, tmp_path / name, i)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "two", save_jinja_files=False)
    pair = [read_adapter(tmp_path / name) for name in ("one", "two")]
    mean = Candidate("linear", weights=(0.5, 0.5), space="factors")
    fold_adapters(tmp_path / "base", pair, mean, tmp_path / "out")
    assert not (tmp_path / "out" / "added_tokens.json").exists()
    assert stored_template(tmp_path / "out") == "{{ messages }}"
    assert read_vocabulary(tmp_path / "out")["<b>"] == len(tokenizer) - 1
    assert capsys.readouterr().err.count("chat templates") == 1

    alone = [replace(pair[0], tokenizer=None)]
    itself = Candidate("linear", weights=(1.0,), space="delta")
    fold_adapters(tmp_path / "base", alone, itself, tmp_path / "other")
    assert "the tokenizer of the base" in capsys.readouterr().err
    assert (tmp_path / "other" / "added_tokens.json").exists()


def test_an_adapter_of_a_base_that_was_made_smaller_is_refused_with_the_remedy(
    base: Path, tmp_path: Path
) -> None:
    resized_adapter(base, tmp_path / "adapter", count=38)
    itself = Candidate("linear", weights=(1.0,), space="delta")
    with pytest.raises(InputError, match=r"made smaller.* resize_token_embeddings\(38\)"):
        fold_adapters(base, [read_adapter(tmp_path / "adapter")], itself, tmp_path / "out")


def test_loading_an_adapter_of_an_enlarged_base_names_the_command_that_folds_it(
    base: Path, tmp_path: Path
) -> None:
    resized_adapter(base, tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(InputError, match="mergeforget merge --full, and name the written folder"):
        with_adapter(model, tmp_path / "adapter")


def test_adapters_of_one_resized_base_are_merged_and_others_refused(
    base: Path, tmp_path: Path
) -> None:
    for i, name in enumerate(("one", "two")):
        resized_adapter(base, tmp_path / name, i)
    pair = [read_adapter(tmp_path / name) for name in ("one", "two")]
    mean = Candidate("linear", weights=(0.5, 0.5), space="delta")
    fold_adapters(base, pair, mean, tmp_path / "out")
    found, origin = weights(tmp_path / "out"), weights(base)
    name = "model.layers.0.self_attn.q_proj"
    deltas = [adapter.deltas[name].dense() for adapter in pair]
    wanted = origin[f"{name}.weight"] + torch.from_numpy(sum(deltas) / 2)
    torch.testing.assert_close(found[f"{name}.weight"], wanted, rtol=1e-5, atol=1e-6)
    head = "base_model.model.lm_head.weight"
    torch.testing.assert_close(
        found["lm_head.weight"], torch.from_numpy(pair[0].extras[head]), rtol=1e-5, atol=1e-6
    )
    pair[1].extras[head] = pair[1].extras[head] + 1
    with pytest.raises(InputError, match="different rows of lm_head.weight for the tokens"):
        fold_adapters(base, pair, mean, tmp_path / "other")
    del pair[0].extras[head]
    with pytest.raises(InputError, match=r"but not in lm_head\.weight. Save both"):
        fold_adapters(base, pair[:1], Candidate("linear", weights=(1.0,)), tmp_path / "other")
