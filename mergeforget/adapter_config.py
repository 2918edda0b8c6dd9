"""The configuration of a PEFT adapter: rank, scaling and the modules it applies to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget.errors import InputError, NumericError
from mergeforget.files import read_json
from mergeforget.parsing import safe_pattern, usable_path

CONFIG = "adapter_config.json"


NAME_SETS = ("target_modules", "exclude_modules")  # sets in PEFT's config


DEFAULT_ALPHA = 8  # PEFT's default for a config without lora_alpha
NO_CHANGE_OF_WEIGHTS = (  # kinds of adapters that add tokens, states or a router instead
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
    "ADAPTION_PROMPT", "LILY", "POLY", "SHADOW", "XLORA",
)  # fmt: skip


def sort_config(folder: Path) -> None:
    """Sort the names in a config that PEFT wrote, so that equal adapters have equal files.

    PEFT stores these names in sets, whose order differs between processes.
    """
    config = read_config(folder)
    for name in NAME_SETS:
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the ``adapter_config.json`` of a PEFT LoRA folder."""
    if not (folder / CONFIG).is_file():
        what = "it is not a folder" if not folder.is_dir() else f"it has no {CONFIG}"
        raise InputError(
            f"{folder} is not an adapter: {what}. An adapter is a folder that PEFT "
            "wrote, for example RUN/over after `mergeforget train-pair`."
        )
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or kind != "LORA":
        remedy = (
            "It does not change weights, so no LoRA is equivalent: evaluate it with PEFT."
            if kind in NO_CHANGE_OF_WEIGHTS
            else "Convert it with "
            f"`mergeforget extract-lora {folder} --base BASE --rank 16 --out OUT`."
        )
        raise InputError(
            f"{folder / CONFIG} has the peft_type {kind!r}, but only LORA is supported. {remedy}"
        )
    for fault in _faults(config):
        raise InputError(f"{folder / CONFIG} is malformed: {fault}.")
    return config


def scaling_of(config: dict[str, Any], module: str, rank: int) -> float:
    """Return the scaling of ``B @ A`` in one module, as PEFT computes it.

    It is ``lora_alpha / rank``, or ``lora_alpha / sqrt(rank)`` with rsLoRA; ``alpha_pattern`` may
    override it per module. A config without ``lora_alpha`` has PEFT's default, 8.

    Raises:
        NumericError: The scaling is NaN, Inf, or too large for float32.
    """
    given = config.get("lora_alpha")
    alpha = _pattern(config.get("alpha_pattern"), module, DEFAULT_ALPHA if given is None else given)
    scaling = float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
    if not abs(scaling) <= float(np.finfo(np.float32).max):
        raise NumericError(
            f"The scaling of {module} is {scaling:g} (lora_alpha {alpha:g}, rank {rank}), which "
            f"overflows float32. Correct lora_alpha or alpha_pattern in {CONFIG}."
        )
    return scaling


def _faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield the values of a config that make the scaling or the adapted weights undefined."""
    if not _is_number(config.get("lora_alpha")):
        yield f"lora_alpha is {config['lora_alpha']!r}, but must be a number"
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        yield f"base_model_name_or_path is {str(base)[:40]!r}, but must be a name"
    usable_path(base if isinstance(base, str) else "")
    rank = config.get("r")
    if rank is not None and (type(rank) is not int or rank < 1):
        yield f"r is {rank!r}, but must be a positive integer"
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(one, str) for one in targets):
        yield f"target_parameters is {str(targets)[:40]}, but must be a list of names"
    for name in ("alpha_pattern", "rank_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(_is_of(v, name) for v in pattern.values()):
            kind = "positive integers" if name == "rank_pattern" else "numbers"
            yield f"{name} is {pattern!r}, but must map patterns to {kind}"
            continue
        for key in pattern:
            try:
                safe_pattern(key, name)
            except InputError as error:
                yield f"{name} has the key {key!r}, not a regular expression ({error})"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_of(value: Any, pattern: str) -> bool:
    """Return whether a pattern of a config may have a value: a rank, or a number."""
    if pattern == "rank_pattern":
        return type(value) is int and value >= 1
    return value is not None and _is_number(value)


def _pattern(pattern: Any, module: str, default: float) -> float:
    """Look up a module in a PEFT pattern: a key matches the name, or its end after a dot."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return float(value)
    return float(default)
