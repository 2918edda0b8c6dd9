"""Loads models and tokenizers from a hub id, a local folder, or the embedded small model.

``mergeforget.model_files`` finds and checks their files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergeforget.console import quiet, say
from mergeforget.distributed import on_main, sharded, world_size
from mergeforget.embedded_model import NAME as EMBEDDED
from mergeforget.errors import (
    InputError,
    MergeforgetError,
    ResourceError,
    UsageError,
    reason_of,
)
from mergeforget.model_adapters import with_adapter
from mergeforget.model_files import locate, stored_template
from mergeforget.recipe import ModelSpec

CACHE = "_mergeforget_cache"  # attribute of a model: how it decodes, model.cache of the recipe


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use.

    Attributes:
        model: The model in eval mode, on its device; a ``PeftModel`` if an adapter was loaded.
        tokenizer: The tokenizer, which has a padding token.
        name: The name that was passed: hub id, folder or ``smollm2``.
        path: Folder of the files.
    """

    model: Any
    tokenizer: Any
    name: str
    path: Path


def load_model(
    spec: ModelSpec | str,
    *,
    device: str | None = None,
    adapter: Path | None = None,
    frozen: bool = False,
    max_memory: Mapping[int | str, int | str] | None = None,
) -> LoadedModel:
    """Load a model with its tokenizer and, optionally, an adapter.

    Args:
        spec: Name of the model, or the section ``model`` of a recipe.
        device: Device of the model; by default the GPU if there is one. With ``auto``, accelerate
            distributes the layers over all GPUs, and offloads to memory and to the model's files
            what they cannot hold; see ``check_resident``.
        adapter: PEFT folder of an adapter to load on the model.
        frozen: Load the model to train an adapter on it: freeze the weights, quantise them if the
            recipe says so, and shard them if the launcher does. Otherwise the weights are loaded
            as they are stored, as merging, evaluation and export need them.
        max_memory: With ``auto``, the memory for weights by device: the number of a GPU, or
            ``cpu``. The free memory by default.

    Raises:
        InputError: There is no such model, it has no safetensors files, its files are damaged, or
            the adapter belongs to another base.
        ResourceError: The model does not fit into memory, or the recipe quantises it and this
            machine has no GPU or no bitsandbytes; with ``auto``, no layer fits into memory.
        UsageError: ``auto`` is used for a training or with several processes.
    """
    spec = ModelSpec(name=spec) if isinstance(spec, str) else spec
    spread = device == "auto"
    if spread and (frozen or world_size() > 1):
        raise UsageError(
            "device auto distributes the layers of one model for evaluation, in one process. To "
            "train a base too large for one GPU, launch with --use_fsdp; see docs/objectives.md."
        )
    path = on_main(partial(locate, spec.name, trust_remote_code=spec.trust_remote_code))
    device = main_device(device)
    spec = spec if frozen else spec.model_copy(update={"quantization": None})
    if spec.quantization:
        _check_quantization(device)
    with quiet(), _explained(spec.name, path):
        several = {"device_map": "auto", "max_memory": max_memory} if spread else {}
        model = _read_model(path, spec, device, several, parts=frozen and sharded())
        setattr(model, CACHE, spec.cache)
        if frozen:
            model.requires_grad_(False)
        tokenizer = _read_tokenizer(path, spec)
        if spec.name not in (EMBEDDED, str(path)) and not Path(spec.name).is_dir():
            model.name_or_path = model.config._name_or_path = spec.name  # not a cache folder's hash
        if adapter is not None:
            model = with_adapter(model, adapter)
    return LoadedModel(model.eval(), tokenizer, spec.name, path)


def check_resident(model: Any, purpose: str, *, one_device: bool = False) -> None:
    """Check that no weight is offloaded, before weights or gradients are used directly.

    Args:
        purpose: Task that needs the weights, as the subject of a sentence.
        one_device: Also check that all weights are on one device.

    Raises:
        ResourceError: Weights are offloaded to memory or disk, where a change would be lost; or
            they are on several devices.
    """
    away = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    if away:
        raise ResourceError(
            f"{purpose} needs all weights on the devices that compute, but {len(away)} are "
            f"offloaded to memory or disk, for example {away[0]}. Use more GPUs, or write a merged "
            "model with mergeforget merge --full and evaluate it by itself."
        )
    devices = sorted({str(p.device) for p in model.parameters()})
    if one_device and len(devices) > 1:
        raise ResourceError(f"{purpose} needs all weights on one device, not {', '.join(devices)}.")


def load_tokenizer(spec: ModelSpec | str) -> Any:
    """Load the tokenizer of a model; its padding token is EOS if it has none."""
    spec = ModelSpec(name=spec) if isinstance(spec, str) else spec
    path = locate(spec.name, trust_remote_code=spec.trust_remote_code)
    with quiet(), _explained(spec.name, path):
        return _read_tokenizer(path, spec)


def default_device() -> str:
    """Return ``cuda`` if a GPU is visible, otherwise ``cpu``; each rank has a GPU of its own."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if world_size() > 1 else "cuda"


def main_device(device: str | None) -> str:
    """Return the device that receives the inputs of a model loaded with ``device``."""
    return default_device() if device in (None, "auto") else str(device)


def dtype_for(spec: ModelSpec, device: str) -> Any:
    """Return the recipe's dtype; ``auto`` is bfloat16 on a GPU that supports it, else float32."""
    import torch

    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    on_gpu = device.startswith("cuda")
    fast = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


KERNELS = {"flash": "flash_attention_2", "flex": "flex_attention"}  # others: transformers' names


def attention_for(spec: ModelSpec, device: str) -> dict[str, str]:
    """Return arguments of ``from_pretrained`` for the attention kernel that a recipe names.

    With ``auto`` that is flash attention, in half precision on a GPU with the package installed.
    Otherwise there are no arguments, and transformers chooses: SDPA if the architecture has it.

    Raises:
        ResourceError: The kernel cannot run on this machine.
    """
    import torch

    on_gpu, installed = device.startswith("cuda"), find_spec("flash_attn") is not None
    half = dtype_for(spec, device) in (torch.bfloat16, torch.float16)
    if spec.attention == "auto":
        if on_gpu and installed and half and not spec.quantization:
            return {"attn_implementation": KERNELS["flash"]}
        return {}
    key = f"model.attention: {spec.attention}"
    if spec.attention in KERNELS and not on_gpu:
        raise ResourceError(
            f"{key} needs a GPU, but none was found. Set model.attention: auto or sdpa."
        )
    if spec.attention == "flash" and not installed:
        raise ResourceError(
            f"{key} needs the package flash-attn, which is not installed: pip install flash-attn, "
            "or set model.attention: sdpa or flex."
        )
    if spec.attention == "flash" and not half:
        raise ResourceError(
            f"{key} computes in half precision only. Set model.dtype: bfloat16, or "
            "model.attention: sdpa."
        )
    return {"attn_implementation": KERNELS.get(spec.attention, spec.attention)}


def _read_model(
    path: Path, spec: ModelSpec, device: str, several: Mapping[str, Any], *, parts: bool
) -> Any:
    """Load the model without an adapter.

    Args:
        several: Arguments of ``from_pretrained`` that distribute the layers over devices.
        parts: Load only this rank's shard of each weight.
    """
    from transformers import AutoModelForCausalLM

    _check_decoder_only(path, spec)
    placed: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}  # onto the GPU
    placed = dict(several) or placed
    if spec.quantization:
        placed["quantization_config"] = _four_bits(dtype_for(spec, device))
    if parts:
        from mergeforget.fsdp import check_cut, sharded_loading

        placed = {"distributed_config": sharded_loading()}
    load: Any = AutoModelForCausalLM.from_pretrained
    load = partial(
        load,
        path,
        dtype=dtype_for(spec, device),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=spec.trust_remote_code,
        output_loading_info=True,
        **placed,
    )
    attention = attention_for(spec, device)
    try:
        model, report = load(**attention)
    except ValueError:  # the architecture has no flash attention
        if spec.attention != "auto" or not attention:
            raise
        model, report = load()
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"{path} lacks {len(missing)} weights, for example {missing[0]}, which would be "
            "random. Copy the model again, with all of its *.safetensors files."
        )
    if parts:
        check_cut(model)
    if several:
        _say_where(model, path)
    return model


def _check_decoder_only(path: Path, spec: ModelSpec) -> None:
    """Raise InputError for an encoder-decoder model, whose decoder lacks the encoder's weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        path, trust_remote_code=spec.trust_remote_code, local_files_only=True
    )
    names = getattr(config, "architectures", None) or [type(config).__name__]
    if getattr(config, "is_encoder_decoder", False) and "ForCausalLM" not in str(names[0]):
        raise InputError(
            f"{path} contains an encoder-decoder model ({names[0]}). Only causal language models "
            "are supported, which continue their prompt, such as Llama, Qwen or GPT-2."
        )


def _say_where(model: Any, path: Path) -> None:
    """Report the devices of the layers of a distributed model."""
    if model.device.type == "meta":
        raise ResourceError(f"No layer of {path} fits into memory. Use a larger machine.")
    places = list((getattr(model, "hf_device_map", None) or {}).values())
    if len(set(places)) > 1:
        counts = ", ".join(f"{places.count(p)} on {p}" for p in dict.fromkeys(places))
        say(f"{type(model).__name__}: modules by device: {counts}.")


def _four_bits(dtype: Any) -> Any:
    """Return QLoRA's configuration: NF4 with double quantisation, computing in ``dtype``.

    Source: Dettmers et al. 2023, arXiv:2305.14314.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _check_quantization(device: str) -> None:
    if not device.startswith("cuda"):
        raise ResourceError(
            "model.quantization: 4bit needs a GPU, but none was found. Leave the key out "
            "to train on the CPU, with gradient_checkpointing: true where memory is short."
        )
    if find_spec("bitsandbytes") is None:
        raise ResourceError(
            "model.quantization: 4bit needs the package bitsandbytes, which is not installed: "
            "pip install 'mergeforget[gpu]'"
        )


TOKENIZERS = ("*token*", "vocab*", "*piece*", "tekken*")  # files of which every tokenizer has one


def _read_tokenizer(path: Path, spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    if not any(found for name in TOKENIZERS for found in path.glob(name)):
        raise InputError(
            f"{path} has no tokenizer. Save the model's tokenizer there, for example with "
            f"AutoTokenizer.from_pretrained(MODEL).save_pretrained({str(path)!r})."
        )
    tokenizer = AutoTokenizer.from_pretrained(
        path, trust_remote_code=spec.trust_remote_code, local_files_only=True
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:  # a processor's, which AutoTokenizer does not read
        tokenizer.chat_template = stored_template(path)
    return tokenizer


@contextmanager
def _explained(name: str, path: Path) -> Iterator[None]:
    """Convert errors of loading a model into errors that say what a user can do."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"{name} does not fit into memory; choose a smaller model.") from error
    except SafetensorError as error:
        raise InputError(
            f"A weight file in {path} is truncated or damaged ({error}). Copy the model again."
        ) from error
    except MergeforgetError:
        raise
    except Exception as error:  # a damaged configuration or tokenizer; tokenizers raise Exception
        if "out of memory" in str(error).lower():
            raise
        way_out = (
            " Give --trust-remote-code to run it, if you trust it."
            if "trust_remote_code" in str(error) else ""
        )  # fmt: skip
        raise InputError(
            f"Cannot load the model {name} from {path}: {reason_of(error)}{way_out}"
        ) from error
