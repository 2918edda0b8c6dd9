"""Adapters on loaded models: load their weights, and use the chat template that they contain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeforget.console import quiet, say
from mergeforget.errors import InputError
from mergeforget.model_files import stored_template


def with_adapter(model: Any, adapter: Path) -> Any:
    """Load an adapter on a model, and check that the model has a place for each of its weights."""
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
            raise _other_base(adapter, model, f"the model has no place for {key}")
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
    """Return the shapes of the LoRA weights in an adapter's file by name, from its header."""
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

    base = read_config(adapter).get("base_model_name_or_path") or "a model that it does not name"
    if re.search(r"size mismatch for \S*(embed|wte|lm_head)\S*weight", why):
        return InputError(
            f"The adapter {adapter} does not fit {model.name_or_path}: {why.strip()}. If tokens "
            "were added to its base, add the adapter to the model's weights with mergeforget merge "
            f"--full, and name the written folder as the model. Otherwise it belongs to {base}."
        )
    return InputError(
        f"The adapter {adapter} does not fit {model.name_or_path}: {why.strip()}. It was trained "
        f"on {base}; load that model."
    )


def adopt_template(tokenizer: Any, adapter: Path | None) -> None:
    """Give a tokenizer the chat template that an adapter's folder contains, with a message.

    Fine-tuning tools save the tokenizer with the adapter. A model that was trained with its
    template may answer with no other, and its users load the tokenizer from that folder.

    Raises:
        InputError: The adapter has a tokenizer with other tokens than the model.
    """
    template = None if adapter is None else stored_template(adapter)
    if adapter is None or template is None or template == tokenizer.chat_template:
        return
    if not _same_tokens(tokenizer, adapter):
        raise InputError(
            f"The adapter {adapter} has a tokenizer with other tokens than the model's, and a "
            "chat template that needs them. Add the adapter to the model's weights with "
            "mergeforget merge --full, and name the written folder as the model."
        )
    tokenizer.chat_template = template
    say(f"Prompts use the chat template of {adapter}, with which the adapter was trained.")


def template_with(base: Path, adapter: Path | None) -> str | None:
    """Return the chat template that a model gets from an adapter that is merged into it.

    None if it has no other than the model's, or, with a warning, one that needs other tokens.
    """
    template = None if adapter is None else stored_template(adapter)
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    if adapter is None or template is None or template == stored_template(base):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError):  # a folder of weights alone
        return str(template)
    if not _same_tokens(tokenizer, adapter):
        say(
            f"Warning: the tokenizer of {adapter} has other tokens than the base's. Copy it into "
            "the written model if that has their embeddings."
        )
        return None
    return str(template)


def _same_tokens(tokenizer: Any, adapter: Path) -> bool:
    """Return whether the tokenizer that an adapter's folder may contain has the same tokens."""
    if not (adapter / "tokenizer.json").is_file():
        return True
    from transformers import AutoTokenizer

    with quiet():
        other = AutoTokenizer.from_pretrained(adapter, local_files_only=True)
    return bool(other.get_vocab() == tokenizer.get_vocab())
