"""Random inputs for benchmarks/merge.py: pairs of adapters and checkpoints of known shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget.adapter import PREFIX
from mergeforget.tensors import write_safetensors

RANK, ALPHA, DENSITY = 32, 64, 0.5
SHAPES = {  # hidden, key-value width, intermediate, layers
    "smollm2-135m": (576, 192, 1536, 30),
    "olmo-1b": (2048, 2048, 8192, 16),
    "7b-layer": (4096, 4096, 11008, 1),
}


def modules(shape: str, layers: int) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear layer by name; for 0 layers, of one projection."""
    hidden, kv, inner, _ = SHAPES[shape]
    kinds = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    if layers == 0:
        return {"model.layers.0.self_attn.q_proj": (hidden, hidden)}
    return {f"model.layers.{i}.{n}": size for i in range(layers) for n, size in kinds.items()}


def make_pair(root: Path, shape: str, layers: int) -> list[Path]:
    """Return two adapters with equal initial A and heavy-tailed B with a decreasing spectrum."""
    draw = np.random.default_rng(0)
    tensors: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    spectrum = np.exp(-np.arange(RANK) / 12) * 0.02
    for module, (rows, columns) in modules(shape, layers).items():
        first = draw.uniform(-1, 1, (RANK, columns))
        shared = draw.standard_normal((rows, RANK))
        for side, sign in zip(tensors, (0.5, -0.15), strict=True):
            a = (first + 0.15 * draw.uniform(-1, 1, first.shape)) / columns**0.5
            b = (sign * shared + draw.standard_t(4, shared.shape)) * spectrum
            side[f"{PREFIX}{module}.lora_A.weight"] = a.astype(np.float32)
            side[f"{PREFIX}{module}.lora_B.weight"] = b.astype(np.float32)
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": shape,
        "target_modules": sorted({m.rpartition(".")[2] for m in modules(shape, layers)}),
    }  # fmt: skip
    folders = [root / "over", root / "under"]
    for folder, side in zip(folders, tensors, strict=True):
        folder.mkdir(parents=True)
        write_safetensors(folder / "adapter_model.safetensors", side)
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folders


def peft_model(pair: list[Path], shape: str, layers: int) -> Any:
    """Load the pair on a base whose weights are never read."""
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, kv, inner, _ = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=128, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=max(1, layers),
        num_attention_heads=hidden // 64, num_key_value_heads=kv // 64,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    wrapped = PeftModel.from_pretrained(model, str(pair[0]), "over")
    wrapped.load_adapter(str(pair[1]), "under")
    return wrapped


def peft_merge(model: Any, kind: str, density: float = DENSITY) -> dict[str, Any]:
    """Merge under a new name; return the factors of the result by module."""
    if "merged" in model.peft_config:
        model.delete_adapter("merged")
    given = {} if kind in ("linear", "cat", "svd") else {"density": density}
    model.add_weighted_adapter(
        ["over", "under"], [1.0, 1.0], "merged", combination_type=kind, **given
    )
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            factors = layer.lora_A["merged"].weight, layer.lora_B["merged"].weight
            found[name] = tuple(x.detach().numpy() for x in factors)
    return found


def make_models(root: Path, shape: str, layers: int) -> list[Path]:
    """Write a base and two models in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, kv, inner, _ = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=49152, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=kv // 64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name in ("base", "one", "two"):
        model.save_pretrained(root / name)
        for parameter in model.parameters():
            parameter.data += (0.002 * torch.randn_like(parameter)).to(torch.bfloat16)
    return [root / name for name in ("base", "one", "two")]
