"""LoRA adapters as numpy arrays, read from and written to PEFT folders without torch.

Norms, inner products and angles of adapters are computed from rank-sized matrices, never from the
(out, in) product.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter_config import CONFIG, _pattern, read_config, scaling_of
from mergeforget.errors import InputError, NumericError
from mergeforget.expert_factors import (
    by_wrapper,
    expert_of,
    is_wrapper,
    join_factors,
    module_of,
    parameter_key,
    split_factors,
    targeted,
)
from mergeforget.files import explained, read_json, replacing, write_json
from mergeforget.model_files import copy_tokenizer, has_tokenizer, stored_template
from mergeforget.parsing import usable_path

Array = NDArray[Any]
PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
INDEX = "adapter_model.safetensors.index.json"
PICKLE = "adapter_model.bin"
FACTOR = re.compile(  # X.lora_A.weight, X.lora_A.default.weight, X.lora_embedding_A[.default]
    r"^(?P<module>.+)\.(?:lora_(?P<factor>[AB])(?:\.(?P<name>[^.]+))?\.weight"
    r"|lora_embedding_(?P<embedding>[AB])(?:\.(?P<of>[^.]+))?)$"
)


FROZEN_COPY = ".original_module."  # in a state dict: the base's weights of a saved module
OF_TRAINING = ".lora_velora_embed"  # VeLoRA is a LoRA that compresses the inputs for its gradients
NAMED = {  # keys of a state dict that contain the adapter's name, and what PEFT writes for them
    re.compile(r"\.lora_magnitude_vector(\.[^.]+){0,2}$"): ".lora_magnitude_vector",
    re.compile(r"\.lora_B\.[^.]+\.bias$"): ".lora_B.bias",
    re.compile(r"\.modules_to_save\.(?:[^.]+\.|(?=weight$))"): ".",  # without it if resized
}


def plain_key(key: str) -> str:
    """Return a key of an adapter's file as PEFT writes it, without the adapter's name.

    >>> plain_key("base_model.model.lm_head.modules_to_save.default.weight")
    'base_model.model.lm_head.weight'
    >>> plain_key("base_model.model.q_proj.lora_magnitude_vector.default.weight")
    'base_model.model.q_proj.lora_magnitude_vector'
    """
    for pattern, plain in NAMED.items():
        key = pattern.sub(plain, key)
    return key


@dataclass(frozen=True, repr=False)
class LowRankDelta:
    """The delta of one module, ``scaling * b @ a``.

    Attributes:
        a: (rank, in)
        b: (out, rank)
        scaling: lora_alpha / rank, or lora_alpha / sqrt(rank) with rsLoRA.
    """

    a: Array
    b: Array
    scaling: float

    def __repr__(self) -> str:
        return f"LowRankDelta({self.shape[0]} x {self.shape[1]}, rank {self.rank})"

    @property
    def rank(self) -> int:
        """Rank of the factors."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the weight."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def dense(self) -> Array:
        """Return the dense delta, (out, in)."""
        return np.asarray(self.scaling * (self.b @ self.a))

    def inner(self, other: LowRankDelta) -> float:
        """Return the Frobenius inner product with another delta of the same module.

        ``<s b a, t d c> = s t sum((b.T d) * (a c.T))`` in float64: O((out + in) rank^2).
        """
        left = self.b.astype(np.float64).T @ other.b.astype(np.float64)
        right = self.a.astype(np.float64) @ other.a.astype(np.float64).T
        return float(self.scaling * other.scaling * np.sum(left * right))

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return math.sqrt(max(0.0, self.inner(self)))


@dataclass(frozen=True, repr=False)
class Adapter:
    """A LoRA adapter.

    Attributes:
        name: Name in messages, for example ``over``.
        deltas: Delta by module name without PEFT's prefix, sorted by name. Experts that the
            model stores in one parameter are separate modules, see ``expert_factors``.
        config: Content of ``adapter_config.json``.
        extras: Tensors other than lora_A and lora_B weights (biases, DoRA's magnitudes, saved
            modules), by name in the file.
        dtype: Stored dtype of the factors ("F32", "F16", "BF16"); in memory they are float32.
        embeddings: Names of the modules that are embeddings. Their delta has the shape (tokens,
            size); PEFT stores its transpose as ``lora_embedding_A`` and ``_B``.
        tokenizer: Folder with the tokenizer or the chat template that was saved with the adapter.
    """

    name: str
    deltas: dict[str, LowRankDelta]
    config: dict[str, Any]
    extras: dict[str, Array] = field(default_factory=dict)
    dtype: str = "F32"
    embeddings: frozenset[str] = frozenset()
    tokenizer: Path | None = None

    def __repr__(self) -> str:
        ranks = {delta.rank for delta in self.deltas.values()}
        span = "-".join(map(str, sorted({min(ranks), max(ranks)}))) if ranks else "0"
        return f"Adapter({self.name!r}, {len(self.deltas)} modules, rank {span}, {self.dtype})"

    @property
    def base(self) -> str:
        """Name of the model that the adapter was trained on, as recorded by PEFT."""
        return str(self.config.get("base_model_name_or_path") or "")

    def adapts_parameter(self, module: str) -> bool:
        """Return whether PEFT adapts the module's parameter itself (``target_parameters``).

        Its delta then has the shape in which the module stores the parameter, (in, out) in GPT-2.
        """
        return adapts_parameter(self.config, module)


def read_adapter(folder: Path, name: str = "") -> Adapter:
    """Read a PEFT LoRA folder.

    A folder without a config but with a single named adapter in a subfolder is read as that
    adapter.

    Args:
        folder: Folder with ``adapter_config.json`` and the weights: ``adapter_model.safetensors``,
            or shards of it with an index.
        name: Name in messages; the folder's name when empty.

    Raises:
        InputError: A file is missing, truncated, a pickle, or not a LoRA adapter, or the rank in
            the config differs from that of the weights.
        NumericError: The scaling is NaN or Inf.
    """
    name, folder = name or folder.name, adapter_folder(folder)
    config = read_config(folder)
    config.pop("velora_config", None)
    factors: dict[str, dict[str, Array]] = {}
    extras: dict[str, Array] = {}
    stored, embeddings, names = set(), set(), set()
    for key, (tensor, dtype) in _weights(folder).items():
        match = FACTOR.match(key)
        if not match:
            if FROZEN_COPY not in key and OF_TRAINING not in key:
                extras[plain_key(key)] = tensor
            continue
        module = match["module"].removeprefix(PREFIX)
        letter = (match["factor"] or match["embedding"]).lower()
        names.add(match["name"] or match["of"] or "")
        if match["embedding"]:  # the weight is (tokens, size), so the delta is (B A)^T
            embeddings.add(module)
            tensor, letter = tensor.T, {"a": "b", "b": "a"}[letter]
        if tensor.dtype.kind != "f":
            raise InputError(
                f"{folder} stores {key} as {dtype} (quantised), whose scale is not read. Save the "
                "adapter in a floating-point dtype."
            )
        factors.setdefault(module, {})[letter] = tensor
        stored.add(dtype)
    if len(names) > 1:
        raise InputError(
            f"{folder} has several adapters in one file: {', '.join(sorted(names))}. Save each "
            "with PEFT's save_pretrained(..., selected_adapters=[name]) and read one of them."
        )
    deltas: dict[str, LowRankDelta] = {}
    for module in sorted(factors):
        deltas |= _deltas(module, factors[module], config, folder)
    if not deltas:
        raise InputError(f"{folder} contains no lora_A and lora_B weights, so it is not a LoRA.")
    dtype = stored.pop() if len(stored) == 1 else "F32"  # mixed dtypes become float32
    own = folder if has_tokenizer(folder) or stored_template(folder) is not None else None
    return Adapter(name, deltas, config, extras, dtype, frozenset(embeddings), own)


def adapter_folder(folder: Path) -> Path:
    """Return the folder of the adapter: ``folder``, or its only subfolder with an adapter.

    PEFT writes an adapter that is not named ``default`` into a subfolder of its name.

    Raises:
        InputError: Several subfolders contain an adapter.
    """
    if (usable_path(folder) / CONFIG).is_file() or not folder.is_dir():
        return folder
    named = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if len(named) > 1:
        raise InputError(
            f"{folder} has several adapters: {', '.join(path.name for path in named)}. Name one "
            f"of them, for example {named[0]}."
        )
    return named[0] if named else folder


def _weights(folder: Path) -> dict[str, tuple[Array, str]]:
    """Return every tensor of an adapter with its stored dtype, from one file or from shards."""
    paths = [folder / WEIGHTS]
    if not paths[0].is_file() and (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise InputError(f"{folder / INDEX} has no weight_map.")
        shards = sorted({str(place) for place in places.values()})
        if any(Path(shard).name != shard for shard in shards):
            raise InputError(f"{folder / INDEX} names a file outside its folder.")
        paths = [folder / shard for shard in shards]
    elif not paths[0].is_file() and (folder / PICKLE).is_file():
        raise InputError(
            f"{folder / PICKLE} is a pickle, which can run code and is therefore not read. If you "
            "trust it, load it with PEFT once and write it with save_pretrained, which stores "
            f"{WEIGHTS}."
        )
    by_key: dict[str, tuple[Array, str]] = {}
    for path in paths:
        tensors, dtypes = read_tensors(path)
        by_key |= {key: (tensor, dtypes[key]) for key, tensor in tensors.items()}
    return by_key


def write_adapter(adapter: Adapter, folder: Path, beside: Mapping[str, Any] | None = None) -> None:
    """Write a plain PEFT folder atomically.

    Args:
        beside: Content of further JSON files of the folder, by name.

    The scaling of each delta is stored as ``lora_alpha`` (and ``alpha_pattern`` if modules
    differ), so PEFT loads the same deltas.
    """
    from mergeforget.tensors import all_finite, write_safetensors

    tensors = dict(adapter.extras)
    for module, delta in adapter.deltas.items():
        if not (all_finite(delta.a) and all_finite(delta.b)):
            raise NumericError(
                f"The factors of {module} in {adapter.name!r} overflow or are NaN, so nothing was "
                "written. Use smaller weights, or --precision float64."
            )
        if expert_of(module) is not None:
            continue
        if module in adapter.embeddings:
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = np.ascontiguousarray(delta.b.T)
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = np.ascontiguousarray(delta.a.T)
            continue
        tensors[f"{PREFIX}{module}.lora_A.weight"] = delta.a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = delta.b
    config = _config_of(adapter)
    for wrapper, names in by_wrapper(adapter.deltas).items():
        scaling = config["lora_alpha"] / config["r"]  # patterns cannot name a nested wrapper
        own = [adapter.deltas[name] for name in names]
        a, b = join_factors([(d.a * (d.scaling / scaling), d.b) for d in own], config["r"])
        tensors[f"{PREFIX}{wrapper}.lora_A.weight"] = a.astype(own[0].a.dtype, copy=False)
        tensors[f"{PREFIX}{wrapper}.lora_B.weight"] = b
    with replacing(folder) as temporary, explained(folder):
        temporary.mkdir()
        write_safetensors(temporary / WEIGHTS, tensors, adapter.dtype)
        text = json.dumps(config, indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        for name, content in (beside or {}).items():
            write_json(temporary / name, content)
        if adapter.tokenizer is not None:
            copy_tokenizer(adapter.tokenizer, temporary)


def adapts_parameter(config: Mapping[str, Any], module: str) -> bool:
    """Return whether a config names a parameter of the module in ``target_parameters``."""
    return _key_of(config, module) != module


def _key_of(config: Mapping[str, Any], module: str) -> str:
    """Return the name of a module, or of its parameter, that the patterns of a config match."""
    return parameter_key(module, config.get("target_parameters") or []) or module


def read_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read a safetensors file: tensors (half precision as float32) and their stored dtypes."""
    from mergeforget.tensors import read_safetensors

    return read_safetensors(path)


def _deltas(
    module: str, factors: dict[str, Array], config: dict[str, Any], folder: Path
) -> dict[str, LowRankDelta]:
    """Return the delta of a module, or of each expert of a wrapped parameter, by name."""
    if factors.keys() != {"a", "b"}:
        missing = "lora_B" if "a" in factors else "lora_A"
        raise InputError(f"{folder}: {module} has no {missing} weight.")
    a, b = factors["a"], factors["b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        remedy = (
            " BD-LoRA stores only the blocks of a factor (use_bdlora). Convert the adapter with "
            f"`mergeforget extract-lora {folder} --base BASE --rank {config.get('r')} --out OUT`."
        )
        raise InputError(
            f"{folder}: {module} has lora_A {a.shape} and lora_B {b.shape}; expected "
            f"(rank, in) and (out, rank).{remedy if config.get('use_bdlora') else ''}"
        )
    rank, targets = int(a.shape[0]), config.get("target_parameters") or []
    key = _key_of(config, module)
    if config.get("r") is not None:
        stated = _pattern(config.get("rank_pattern"), key, config["r"])
        if is_wrapper(module, rank, int(stated), targets):
            return _expert_deltas(module, a, b, config, folder)
        if rank != stated:
            raise InputError(
                f"{folder / CONFIG} gives {module} the rank {stated:g}, but its weights have rank "
                f"{rank}. PEFT cannot load such an adapter, and its scaling is undefined. "
                "Correct r, or rank_pattern, in the config."
            )
    return {module: LowRankDelta(a, b, scaling_of(config, key, rank))}


def _expert_deltas(
    wrapper: str, a: Array, b: Array, config: dict[str, Any], folder: Path
) -> dict[str, LowRankDelta]:
    """Return the deltas of the experts of one parameter; patterns match the parameter's name."""
    named = targeted(wrapper, config["target_parameters"])
    keys = [f"{module_of(wrapper)}.{name.rpartition('.')[2]}" for name in named]
    ranks = {int(_pattern(config.get("rank_pattern"), key, config["r"])) for key in keys}
    if len(ranks) != 1 or a.shape[0] % (rank := min(ranks)):
        raise InputError(
            f"{folder}: {wrapper} has lora_A {a.shape}, which is not a stack of factors of rank "
            f"{' or '.join(map(str, sorted(ranks)))}. Train the parameters of {', '.join(keys)} "
            "with one rank."
        )
    scalings = {scaling_of(config, key, rank) for key in keys}
    if len(scalings) != 1:
        raise InputError(
            f"{folder / CONFIG} gives the parameters {', '.join(keys)} different values of "
            "lora_alpha. They are in one module and need the model to be distinguished. Train "
            "them with one lora_alpha."
        )
    (scaling,) = scalings
    return {
        f"{wrapper}[{i}]": LowRankDelta(one, other, scaling)
        for i, (one, other) in enumerate(split_factors(a, b, rank))
    }


def _config_of(adapter: Adapter) -> dict[str, Any]:
    """Return the config with which PEFT loads every delta with its rank and scaling."""
    rank = max(d.rank for d in adapter.deltas.values())
    plain = {m: d for m, d in adapter.deltas.items() if expert_of(m) is None}
    ranks = {m: d.rank for m, d in plain.items()}
    alphas = {m: d.scaling * d.rank for m, d in plain.items()}
    alpha = next((a for m, a in alphas.items() if ranks[m] == rank), float(rank))
    config = dict(adapter.config)

    def key(module: str) -> str:  # anchored, because PEFT also matches the end of a longer name
        return f"^{re.escape(_key_of(config, module))}"

    config.update(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        use_rslora=False,
        rank_pattern={key(m): r for m, r in ranks.items() if r != rank},
        alpha_pattern={key(m): a for m, a in alphas.items() if a != alpha},
        inference_mode=True,
    )
    return config
