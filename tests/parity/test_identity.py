"""Every kind of adapter on eight architectures: merged alone at weight 1 it gives PEFT's logits.

Each of the three ways to use an adapter (merge, ``--full``, ``extract-lora``) is right, or refuses
the adapter by name, or reports what it left out. ``RIGHT`` lists the ways that must be right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig
from transformers import (
    FalconConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen3Config,
    ViTConfig,
)

from mergeforget.adapter import read_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import MergeforgetError
from mergeforget.merge.apply import applied
from mergeforget.merge.checkpoint.full import fold_adapters
from mergeforget.merge.engine import merge_adapters, write_candidate
from mergeforget.merge.extract import extract_lora
from mergeforget.merge.multi_adapter import UnfitError, side_by_side

LIKE_LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
ARCHITECTURES: dict[str, Any] = {
    "llama": (LlamaConfig(**LIKE_LLAMA), "LlamaForCausalLM"),
    "gemma3": (
        Gemma3Config(
            text_config=LIKE_LLAMA | {"head_dim": 8, "sliding_window": 32},
            vision_config=VISION, mm_tokens_per_image=4,
        ),
        "Gemma3ForConditionalGeneration",
    ),
    "gpt2": (
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        "GPT2LMHeadModel",
    ),
    "qwen3": (
        Qwen3Config(**LIKE_LLAMA, head_dim=8, tie_word_embeddings=True), "Qwen3ForCausalLM"
    ),
    "mixtral": (
        MixtralConfig(**LIKE_LLAMA, num_local_experts=3, num_experts_per_tok=2),
        "MixtralForCausalLM",
    ),
    "phi3": (Phi3Config(**LIKE_LLAMA | {"num_key_value_heads": 2}), "Phi3ForCausalLM"),
    "falcon": (
        FalconConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, bias=True,
            bos_token_id=1, eos_token_id=2,
        ),
        "FalconForCausalLM",
    ),
    "vit": (ViTConfig(**VISION | {"num_labels": 5}), "ViTForImageClassification"),
}  # fmt: skip
TARGETS = {
    "llama": ["q_proj", "up_proj", "down_proj"],
    "gemma3": r".*(language_model|vision).*(q_proj|up_proj|down_proj|fc1)",
    "gpt2": ["c_attn", "c_proj"],
    "qwen3": ["q_proj", "up_proj", "down_proj"],
    "mixtral": ["q_proj", "o_proj"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "vit": r".*layer.*\.(query|q_proj|fc1|dense)",
}
PARAMETERS = {
    "mixtral": ["experts.gate_up_proj", "experts.down_proj"],
    "gpt2": ["attn.c_proj.weight", "c_fc.weight"],
    "phi3": ["qkv_proj.weight"],
    "falcon": ["query_key_value.weight"],
    "vit": ["query.weight", "q_proj.weight"],
}
HEADS = {"gpt2": "wte", "vit": "classifier"}


def config_of(kind: str, name: str) -> Any:
    """PEFT's config of a kind of adapter on an architecture."""
    targets = TARGETS[name]
    lora: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": targets}
    more: dict[str, dict[str, Any]] = {
        "LoRA": {},
        "rsLoRA": {"use_rslora": True},
        "DoRA": {"use_dora": True},
        "PiSSA": {"init_lora_weights": "pissa"},
        "OLoRA": {"init_lora_weights": "olora"},
        "KaSA": {"kasa_config": KasaConfig()},
        "bias": {"bias": "all"},
        "saved modules": {"modules_to_save": [HEADS.get(name, "lm_head")]},
        "tokens": {"trainable_token_indices": [3, 7]},
        "parameters": {
            "target_modules": [], "target_parameters": PARAMETERS.get(name, ["q_proj.weight"]),
        },
    }  # fmt: skip
    if kind in more:
        return LoraConfig(**lora | more[kind])
    plain: dict[str, Any] = {"target_modules": targets}
    if kind == "IA3":
        return peft.IA3Config(**plain, feedforward_modules=[])
    return {"LoHa": peft.LoHaConfig, "LoKr": peft.LoKrConfig}[kind](r=2, **plain)


KINDS = ["LoRA", "rsLoRA", "DoRA", "PiSSA", "OLoRA", "KaSA", "bias", "saved modules", "tokens",
         "parameters", "LoHa", "LoKr", "IA3"]  # fmt: skip
ITSELF = Candidate("linear", weights=(1.0,), space="delta")


def load(folder: Path) -> Any:
    """A model as its config names it."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder).eval()


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model = load(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    torch.manual_seed(5)
    inputs: dict[str, Any] = {"input_ids": torch.tensor([[3, 5, 7, 11, 2, 30]])}
    if model.config.model_type == "vit":
        inputs = {"pixel_values": torch.randn(2, 3, 8, 8)}
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for name, (config, kind) in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases too
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ARCHITECTURES}


def make(kind: str, name: str, base: Path, folder: Path) -> Path:
    """An adapter by PEFT whose trainable parameters were all moved."""
    torch.manual_seed(1)
    model = get_peft_model(load(base), config_of(kind, name))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


def outcome(way: str, base: Path, adapter: Path, out: Path, wanted: torch.Tensor) -> str:
    """``right``, ``refused: why``, ``left out: what``, or ``wrong``."""
    try:
        if way == "merge":
            write_candidate(merge_adapters([read_adapter(adapter)], ITSELF), out)
            found = logits(base, out)
        elif way == "full":
            fold_adapters(base, [read_adapter(adapter)], ITSELF, out)
            found = logits(out)
        else:
            extracted = extract_lora(adapter, base, 64)
            if extracted.report["energy_left_out"] > 0:
                return f"left out: {extracted.report['left_out']}"
            extracted.save(out)
            found = logits(base, out)
    except MergeforgetError as error:
        return f"refused: {error}"
    near = torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)
    return "right" if near else f"wrong by {float((found - wanted).abs().max()):.3g}"


EVERY = {"merge", "full", "extract"}
RIGHT: dict[str, set[str]] = {
    "LoRA": EVERY, "rsLoRA": EVERY, "parameters": EVERY, "DoRA": {"full", "extract"},
    "bias": {"full"}, "saved modules": {"full"}, "tokens": set(), "IA3": set(),
} | dict.fromkeys(["PiSSA", "OLoRA", "KaSA", "LoHa", "LoKr"], {"extract"})  # fmt: skip
WITHOUT_BIAS = ("llama", "qwen3", "mixtral", "phi3")
LANGUAGE = tuple(name for name in ARCHITECTURES if name != "vit")
MORE = (
    {(name, kind): {"extract"} for name in WITHOUT_BIAS for kind in ("bias", "IA3")}
    | {(name, kind): {"extract"} for name in LANGUAGE for kind in ("saved modules", "tokens")}
)  # fmt: skip
FEWER = {("gpt2", "DoRA"): {"full"}, ("mixtral", "parameters"): {"extract"}}
PEFT_CANNOT = {("gpt2", kind) for kind in ("OLoRA", "KaSA", "LoHa", "LoKr")} | {("vit", "tokens")}
FAST = [("gpt2", "parameters"), ("gemma3", "LoRA"), ("vit", "LoRA")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in FAST else pytest.mark.slow)
        for name in ARCHITECTURES
        for kind in KINDS
        if (name, kind) not in PEFT_CANNOT
    ],
)
def test_an_adapter_is_right_or_refused_by_name(
    name: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[name]
    adapter = make(kind, name, base, tmp_path / "adapter")
    wanted = logits(base, adapter)
    assert float((wanted - logits(base)).abs().max()) > 0.01  # far above the tolerance below
    right = (RIGHT[kind] | MORE.get((name, kind), set())) - FEWER.get((name, kind), set())
    found = {way: outcome(way, base, adapter, tmp_path / way, wanted) for way in sorted(EVERY)}
    assert {way for way in EVERY if found[way] == "right"} == right, found
    assert not [one for one in found.values() if one.startswith("wrong")], found


def test_a_parameter_of_gpt2_is_applied_as_it_is_stored(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """``attn.c_proj`` is square, so the transposed change would fit without a word."""
    base = bases["gpt2"]
    folder = make("parameters", "gpt2", base, tmp_path / "adapter")
    adapter, model = read_adapter(folder), load(base)
    ids = torch.tensor([[3, 5, 7, 11, 2, 30]])
    with torch.no_grad(), applied(model, adapter):
        torch.testing.assert_close(model(input_ids=ids).logits, logits(base, folder))
    with pytest.raises(UnfitError, match="c_fc|c_proj"), side_by_side(model, [adapter]):
        pass
