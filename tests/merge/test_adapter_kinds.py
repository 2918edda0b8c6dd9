"""An adapter merged alone at weight 1 gives PEFT's logits; every style of file is read or named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from mergeforget.adapter import PREFIX, read_adapter, write_adapter
from mergeforget.candidate import Candidate
from mergeforget.cli import main
from mergeforget.errors import InputError, MergeforgetError, NumericError
from mergeforget.merge.checkpoint.full import fold_adapters
from mergeforget.merge.engine import MergeSettings, merge_adapters, write_candidate
from mergeforget.merge.extract import extract_lora
from mergeforget.tensors import read_safetensors, write_safetensors

LIKE_LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
ARCHITECTURES: dict[str, Any] = {
    "llama": LlamaConfig(**LIKE_LLAMA),
    "mistral": MistralConfig(**LIKE_LLAMA),
    "qwen2": Qwen2Config(**LIKE_LLAMA, tie_word_embeddings=True),
    "gemma": GemmaConfig(**LIKE_LLAMA, head_dim=8),
    "phi": PhiConfig(**LIKE_LLAMA | {"num_key_value_heads": 2}),
    "opt": OPTConfig(
        vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16,
    ),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in LIKE_LLAMA.items() if "key_value" not in k}),
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 5}},
    "alpha 0": {"lora_alpha": 0},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
    "VeLoRA": {"velora_config": {"num_groups": 8}},
}
IDS = torch.tensor([[3, 5, 7, 11, 2, 30]])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for name, config in ARCHITECTURES.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return {name: folder / name for name in ARCHITECTURES}


def make(base: Path, folder: Path, seed: int = 1, **settings: Any) -> Path:
    """An adapter by PEFT whose trainable parameters were all moved."""
    config: Any = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**config))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


EVERY = [
    pytest.param(name, kind, marks=[] if name == "gpt2" or kind == "plain" else pytest.mark.slow)
    for name in ARCHITECTURES
    for kind in KINDS
]


@pytest.mark.parametrize(("architecture", "kind"), EVERY)
def test_one_adapter_at_weight_1_gives_the_logits_of_peft(
    architecture: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[architecture]
    folder = make(base, tmp_path / "adapter", **KINDS[kind])
    wanted = logits(base, folder)
    adapter, itself = read_adapter(folder), Candidate("linear", weights=(1.0,), space="delta")
    write_candidate(merge_adapters([adapter], itself), tmp_path / "merged")
    torch.testing.assert_close(logits(base, tmp_path / "merged"), wanted, rtol=1e-4, atol=1e-5)
    fold_adapters(base, [adapter], itself, tmp_path / "full")
    torch.testing.assert_close(logits(tmp_path / "full"), wanted, rtol=1e-4, atol=1e-5)
    assert torch.allclose(wanted, logits(base)) == (kind == "alpha 0")


def test_lora_on_an_embedding_is_merged(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    pair = [
        make(base, tmp_path / name, i, target_modules=["embed_tokens", "q_proj"])
        for i, name in enumerate(("one", "two"))
    ]
    adapters = [read_adapter(folder) for folder in pair]
    assert adapters[0].embeddings == {"model.embed_tokens"}
    itself = Candidate("linear", weights=(1.0,))
    write_candidate(merge_adapters(adapters[:1], itself), tmp_path / "merged")
    wanted = logits(base, pair[0])
    torch.testing.assert_close(logits(base, tmp_path / "merged"), wanted, rtol=1e-4, atol=1e-5)
    fold_adapters(base, adapters[:1], itself, tmp_path / "full")
    torch.testing.assert_close(logits(tmp_path / "full"), wanted, rtol=1e-4, atol=1e-5)
    merged = merge_adapters(adapters, Candidate("linear", space="delta", rank=8)).adapter
    name = "model.embed_tokens"
    summed = sum(adapter.deltas[name].dense() for adapter in adapters)
    np.testing.assert_allclose(merged.deltas[name].dense(), summed, atol=1e-5)


def rewritten(
    folder: Path, config: Callable[[dict[str, Any]], Any], key: Callable[[str], str] = str
) -> Path:
    """A copy of an adapter whose config and tensor names were changed."""
    copy = shutil.copytree(folder, folder.with_name("copy"), dirs_exist_ok=True)
    settings = json.loads((copy / "adapter_config.json").read_text())
    config(settings)
    (copy / "adapter_config.json").write_text(json.dumps(settings))
    tensors, _ = read_safetensors(folder / "adapter_model.safetensors")
    write_safetensors(
        copy / "adapter_model.safetensors", {key(name): x for name, x in tensors.items()}
    )
    return copy


def test_the_scaling_equals_that_of_peft(write_lora: Callable[..., Path]) -> None:
    folder = write_lora("one", rank=4)
    scaling = {
        "without lora_alpha": lambda c: c.pop("lora_alpha"),
        "null": lambda c: c.update(lora_alpha=None, rank_pattern=None, alpha_pattern=None),
        "zero": lambda c: c.update(lora_alpha=0),
        "without r": lambda c: c.pop("r"),
    }
    found = {
        name: {d.scaling for d in read_adapter(rewritten(folder, change)).deltas.values()}
        for name, change in scaling.items()
    }
    # PEFT's LoraConfig has lora_alpha = 8: 8 / 4; the last keeps lora_alpha = 8 of write_lora
    assert found == {"without lora_alpha": {2.0}, "null": {2.0}, "zero": {0.0}, "without r": {2.0}}


def test_a_rank_that_the_weights_do_not_have_is_refused(write_lora: Callable[..., Path]) -> None:
    folder = write_lora("one", rank=2, r=8, lora_alpha=8)
    with pytest.raises(InputError, match="rank 8, but its weights have rank 2"):
        read_adapter(folder)
    pattern = rewritten(folder, lambda c: c.update(r=2, rank_pattern={"q_proj": 3}))
    with pytest.raises(InputError, match="q_proj the rank 3"):
        read_adapter(pattern)
    fixed = rewritten(folder, lambda c: c.update(rank_pattern={"q_proj": 2, "up_proj": 2}))
    assert {delta.rank for delta in read_adapter(fixed).deltas.values()} == {2}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, -1e308])
def test_a_scaling_that_is_not_a_number_is_refused(value: float, write_lora: Any) -> None:
    # json refuses NaN and infinity by name; a finite number can still overflow the scaling
    finite = abs(value) < float("inf")
    error = NumericError if finite else InputError
    message = "scaling of" if finite else "is not a finite number"
    with pytest.raises(error, match=message):
        read_adapter(write_lora("one", lora_alpha=value))
    with pytest.raises(error, match=message):
        read_adapter(write_lora("two", alpha_pattern={"q_proj": value}))


@pytest.mark.parametrize("value", ["experts.gate_up_proj", [3], {"experts": 1}])
def test_target_parameters_that_are_no_list_of_names_are_refused(
    value: Any, write_lora: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match="target_parameters is .* must be a list of names"):
        read_adapter(write_lora("one", target_parameters=value))


def test_older_key_styles_are_read(write_lora: Callable[..., Path]) -> None:
    folder = write_lora("one")
    wanted = read_adapter(folder)
    styles: dict[str, Callable[[str], str]] = {
        "with the adapter's name": lambda k: k.replace(".weight", ".default.weight"),
        "without PEFT's prefix": lambda k: k.removeprefix(PREFIX),
    }
    for style in styles.values():
        found = read_adapter(rewritten(folder, lambda _: None, style))
        assert found.deltas.keys() == wanted.deltas.keys() and not found.extras
    two = {"q_proj": "first", "up_proj": "second"}
    names = lambda k: k.replace(  # noqa: E731
        ".weight", f".{next(v for n, v in two.items() if n in k)}.weight"
    )
    with pytest.raises(InputError, match="several adapters in one file: first, second"):
        read_adapter(rewritten(folder, lambda _: None, names))


def test_adapters_in_subfolders_and_shards_are_read_and_pickles_refused(
    write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_lora("one")
    wanted = read_adapter(folder)
    named = tmp_path / "named"
    shutil.copytree(folder, named / "over")
    assert read_adapter(named).deltas.keys() == wanted.deltas.keys()
    shutil.copytree(folder, named / "under")
    with pytest.raises(InputError, match="several adapters: over, under"):
        read_adapter(named)
    path = folder / "adapter_model.safetensors"
    tensors, _ = read_safetensors(path)
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    places: dict[str, str] = {}
    for i, half in enumerate(halves):
        shard = f"adapter_model-{i + 1:05d}-of-00002.safetensors"
        write_safetensors(folder / shard, half)
        places |= dict.fromkeys(half, shard)
    path.unlink()
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = read_adapter(folder)
    for module, delta in wanted.deltas.items():
        assert np.array_equal(found.deltas[module].dense(), delta.dense())
    (folder / "adapter_model.safetensors.index.json").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match="is a pickle, which can run code"):
        read_adapter(folder)


def test_mixed_dtypes_are_widened(write_lora: Callable[..., Path], tmp_path: Path) -> None:
    one = read_adapter(write_lora("one"))
    write_adapter(one, tmp_path / "wide")
    tensors, _ = read_safetensors(tmp_path / "wide" / "adapter_model.safetensors")
    shutil.copytree(tmp_path / "wide", tmp_path / "half")
    write_safetensors(tmp_path / "half" / "adapter_model.safetensors", tensors, "BF16")
    for first, second in (("half", "wide"), ("wide", "half")):
        pair = [read_adapter(tmp_path / name) for name in (first, second)]
        assert merge_adapters(pair, Candidate("cat")).adapter.dtype == "F32"
    half = read_adapter(tmp_path / "half")
    assert merge_adapters([half, half], Candidate("cat")).adapter.dtype == "BF16"


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("linear", weights=(1e5, 1e5)),
        Candidate("ties", 0.5, (1e5, 1e5)),
        Candidate("cat", weights=(100.0, 100.0)),
        Candidate("ties", 0.5, (1.0, 1.0), "delta"),
        Candidate("linear", weights=(1.0, 1.0), space="delta"),
    ],
    ids=lambda c: c.name,
)
def test_factors_that_overflow_are_refused(
    candidate: Candidate, write_lora: Callable[..., Path]
) -> None:
    one = read_adapter(write_lora("one"))
    for delta in one.deltas.values():
        delta.a[:], delta.b[:] = 3e38, 3e38
    with pytest.raises(NumericError):
        merge_adapters([one, one], candidate)


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_scaling_that_is_not_finite_is_refused(
    alpha: str, write_lora: Callable[..., Path]
) -> None:
    folder = write_lora("one")
    config = folder / "adapter_config.json"
    config.write_text(re.sub(r'("lora_alpha": )[^,\n]+', rf"\g<1>{alpha}", config.read_text()))
    with pytest.raises(MergeforgetError, match="lora_alpha|number|finite"):
        read_adapter(folder)


@pytest.mark.parametrize("changed", ["alpha", "weight"])
def test_a_finite_setting_that_overflows_is_refused_before_it_is_written(
    changed: str, write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """A scaling of 1e308, and factors of 1e38 with a weight of 100, leave float32."""
    folder = write_lora("one")
    config, weights = folder / "adapter_config.json", "1"
    if changed == "alpha":
        config.write_text(re.sub(r'("lora_alpha": )[^,\n]+', r"\g<1>1e308", config.read_text()))
    else:
        file = folder / "adapter_model.safetensors"
        tensors = {k: torch.full_like(v, 1e38) for k, v in load_file(file).items()}
        save_file(tensors, file)
        weights = "100"
    out = tmp_path / "out"
    call = ["merge", "--adapter", str(folder), "--method", "linear", "--weights", weights,
            "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(main, call)
    assert done.exit_code in (4, 5) and not out.exists(), done.output


TIED: dict[str, dict[str, Any]] = {
    "trained embedding": {"modules_to_save": ["embed_tokens"]},
    "trained output layer": {"modules_to_save": ["lm_head"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "both kept equal": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "LoRA on the output layer": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("kind", TIED)
def test_a_tied_embedding_is_folded_as_peft_computes_it(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["qwen2"]
    settings = {"target_modules": ["q_proj", "up_proj"]} | TIED[kind]
    folder = make(base, tmp_path / "adapter", **settings)
    wanted = logits(base, folder)
    fold_adapters(base, [read_adapter(folder)], Candidate("linear", weights=(1.0,), space="delta"),
                  tmp_path / "full")  # fmt: skip
    torch.testing.assert_close(logits(tmp_path / "full"), wanted, rtol=1e-4, atol=1e-5)


def test_the_names_of_the_hub_are_found(bases: dict[str, Path], tmp_path: Path) -> None:
    """GPT-2 is stored as ``h.0.attn...`` on the hub, and has ``transformer.h.0.attn...`` here."""
    base = shutil.copytree(bases["gpt2"], tmp_path / "hub")
    tensors, _ = read_safetensors(base / "model.safetensors")
    plain = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    assert plain.keys() != tensors.keys()
    write_safetensors(base / "model.safetensors", plain)
    folder = make(base, tmp_path / "adapter", target_modules=["c_attn", "c_fc"])
    wanted = logits(base, folder)
    fold_adapters(base, [read_adapter(folder)], Candidate("linear", weights=(1.0,), space="delta"),
                  tmp_path / "full")  # fmt: skip
    torch.testing.assert_close(logits(tmp_path / "full"), wanted, rtol=1e-4, atol=1e-5)
    extract_lora(folder, base, 16).save(tmp_path / "extracted")
    extracted = logits(base, tmp_path / "extracted")
    torch.testing.assert_close(extracted, wanted, rtol=1e-3, atol=1e-4)


def test_bases_are_compared_by_content(
    bases: dict[str, Path], write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(bases["llama"], tmp_path / "renamed")
    other = shutil.copytree(bases["llama"], tmp_path / "others" / "llama")
    tensors, _ = read_safetensors(other / "model.safetensors")
    write_safetensors(other / "model.safetensors", {k: x + 0.1 for k, x in tensors.items()})
    half = shutil.copytree(bases["llama"], tmp_path / "bf16")
    write_safetensors(half / "model.safetensors", tensors, "BF16")
    one = read_adapter(write_lora("one", base_model_name_or_path=str(bases["llama"])))

    def merged_with(name: str, base: Path | str, **how: Any) -> None:
        adapter = read_adapter(write_lora(f"{name} adapter", base_model_name_or_path=str(base)))
        merge_adapters([one, adapter], Candidate("linear"), MergeSettings(**how))

    merged_with("copy", copy)
    merged_with("half", half)
    with pytest.raises(InputError, match="--same-base"):
        merged_with("other", other)
    merged_with("trusted", other, same_base=True)
    quantised = read_adapter(write_lora("q", base_model_name_or_path="unsloth/Llama-1B-bnb-4bit"))
    plain = read_adapter(write_lora("p", base_model_name_or_path="meta/llama-1b"))
    merge_adapters([quantised, plain], Candidate("linear"))
    with pytest.raises(InputError, match="--same-base"):
        merge_adapters([quantised, read_adapter(write_lora("x", base_model_name_or_path="m/l-3b"))],
                       Candidate("linear"))  # fmt: skip
