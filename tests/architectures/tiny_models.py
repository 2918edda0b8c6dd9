"""Tiny random models of many architectures, built from their transformers configs."""

# ruff: noqa: E501

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {  # the arguments that a config's class accepts
    "vocab_size": 259,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32,
    "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256, "max_seq_len": 256,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = 6  # tokens of a sliding window, shorter than most prompts here
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
       "v_head_dim": 8, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1,
       "first_k_dense_replace": 1, "head_dim": 8, "n_shared_experts": 1}  # fmt: skip
HYBRID = {"num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
          "linear_key_head_dim": 8, "linear_value_head_dim": 8,
          "layer_types": ["linear_attention"] * 3 + ["full_attention"]}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
SHARED_KEYS = {"num_hidden_layers": 4, "layer_types": MIXED * 2, "sliding_window": WINDOW,
               "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 259,
               "hidden_size_per_layer_input": 8}  # fmt: skip
HYBRIDS = ["linear_attention", "hybrid", "hybrid"]
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
          "mamba_chunk_size": 8}  # fmt: skip
FAST: dict[str, dict[str, Any]] = {  # model type: arguments of its config besides SMALL
    "llama": {}, "mistral": {"sliding_window": WINDOW}, "ministral": {"sliding_window": WINDOW},
    "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW}, "gpt2": {}, "gpt_bigcode": {}, "gptj": {"rotary_dim": 4},
    "gpt_neox": {}, "codegen": {"rotary_dim": 4}, "openai-gpt": {}, "opt": {"word_embed_proj_dim": 32},
    "bloom": {}, "falcon": {"alibi": True}, "mpt": {}, "phi": {}, "phi3": {}, "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW}, "olmo": {}, "olmo2": {}, "olmo3": {"sliding_window": WINDOW},
    "cohere": {}, "cohere2": {"sliding_window": WINDOW}, "granite": {}, "glm": {}, "helium": {},
    "smollm3": {}, "nemotron": {}, "xglm": {"attention_heads": 4}, "biogpt": {}, "ctrl": {"dff": 64},
    "mixtral": {}, "qwen2_moe": {"shared_expert_intermediate_size": 32}, "qwen3_moe": {}, "olmoe": {},
    "granitemoe": {}, "phimoe": {}, "gpt_oss": {"sliding_window": WINDOW},
    "llama4_text": {"attention_chunk_size": 8, "intermediate_size_mlp": 64},
    "deepseek_v2": {**MLA, "num_experts_per_tok": 2}, "deepseek_v3": MLA, "jetmoe": {"kv_channels": 8},
    "mamba": {"state_size": 4}, "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 4}, "rwkv": {"attention_hidden_size": 32},
    "qwen3_next": {**HYBRID, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    "qwen3_5_text": HYBRID, "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "lfm2": {"layer_types": ["conv", "full_attention"]}, "recurrent_gemma": {"lru_width": 32, "attention_window_size": WINDOW, "num_hidden_layers": 3},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}, "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}},
}  # fmt: skip
SLOW: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        "afmoe apertus arcee aria_text bitnet cwm diffllama doge ernie4_5 ernie4_5_moe exaone4 "
        "exaone_moe flex_olmo glm4 glm4_moe gpt_neox_japanese granite_swa granitemoeshared "
        "granitemoe_swa hunyuan_v1_dense hunyuan_v1_moe internlm3 jais2 laguna mellum mimo_v2_flash "
        "minimax minimax_m2 ministral3 modernbert-decoder moshi nanochat olmo_hybrid persimmon "
        "seed_oss solar_open vaultgemma xlstm bailing_hybrid"
    ).split()
}
for _name in (  # relatives of others that are in FAST
    "ministral gpt_bigcode codegen xglm biogpt ctrl helium glm nemotron smollm3 granite starcoder2 "
    "phimoe jetmoe falcon_mamba"
).split():
    SLOW[_name] = FAST.pop(_name)
SLOW |= {
    "granitemoehybrid": {**MAMBA2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "bert": {"is_decoder": True}, "roberta": {"is_decoder": True},
    "nemotron_h": {**MAMBA2, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "qwen3_5_moe_text": {**HYBRID, "shared_expert_intermediate_size": 32},
    "minicpm3": {**MLA},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1}, "youtu": MLA,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {**MLA, "ffn_hidden_size": 64, "moe_topk": 2, "zero_expert_num": 2, "expert_ffn_hidden_size": 16},
    "kimi_linear": {**MLA, "q_lora_rank": None, "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
                    "linear_attn_config": {"head_dim": 8, "num_heads": 4, "short_conv_kernel_size": 4}},
    "gemma3n_text": {**SHARED_KEYS, "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "gemma4_text": {**SHARED_KEYS, "global_head_dim": 8},
    "cohere_compass_text": {"layer_types": MIXED, "sliding_window": WINDOW, "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in MIXED}},
    "minimax_m3_vl_text": {"dense_intermediate_size": 64, "shared_intermediate_size": 32, "intermediate_size": 32, "rotary_dim": 4,
                           "mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention", "minimax_m3_sparse"],
                           "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 4, "index_topk_blocks": 2},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": HYBRIDS, "mamba_d_state": 8, "n_mamba_heads": 4, "num_key_value_heads": 4,
               "chunk_size": 8, "adapter_rank": 4, "num_mem_blocks": 2, "use_mem_rope": True},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": HYBRIDS, "mamba_d_state": 4, "attention_head_dim": 16, "num_key_value_heads": 4, "use_mamba_kernels": False},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_n_groups": 1},
}  # fmt: skip
REFUSED = ("bert", "roberta", "xlm-roberta", "electra", "xlnet", "xlm", "megatron-bert")  # encoders


def build(model_type: str, seed: int = 0, **settings: Any) -> Any:
    """A random model of a few thousand weights, in eval mode, whose greedy answers vary."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = CONFIG_MAPPING[model_type]
    names = {*inspect.signature(kind.__init__).parameters, *getattr(kind, "__annotations__", {})}
    names |= set(kind.attribute_map)
    config = kind(**({k: v for k, v in SMALL.items() if k in names} | settings))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and 0 < (spread := float(parameter.std())) < 0.2:
                parameter.mul_(0.2 / spread)
    return model


def save(model: Any, folder: Path) -> Path:
    """The model and a byte tokenizer as a plain folder."""
    from conftest import build_tokenizer

    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
