"""LoRA adapters as plain arrays: read from and written to PEFT folders, without torch.

Everything that two adapters have between them (norms, inner products, angles) is computed from
rank-sized matrices, never from the (out, in) product.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import InputError
from mergeforget.files import explained, read_json, whole, write_json

Array = NDArray[Any]
PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, repr=False)
class LowRankDelta:
    """One module's change, ``scaling * b @ a``.

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
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that it changes."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def dense(self) -> Array:
        """The change itself, (out, in)."""
        return np.asarray(self.scaling * (self.b @ self.a))

    def inner(self, other: LowRankDelta) -> float:
        """Frobenius inner product with another change of the same module.

        ``<s b a, t d c> = s t sum((b.T d) * (a c.T))`` in float64: O((out + in) rank^2).
        """
        left = self.b.astype(np.float64).T @ other.b.astype(np.float64)
        right = self.a.astype(np.float64) @ other.a.astype(np.float64).T
        return float(self.scaling * other.scaling * np.sum(left * right))

    def norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(max(0.0, self.inner(self)))


@dataclass(frozen=True, repr=False)
class Adapter:
    """A LoRA adapter: what train-pair writes and merge reads.

    Attributes:
        name: how messages call it, for example ``over``.
        deltas: module name without PEFT's prefix -> its change, sorted by name.
        config: the content of ``adapter_config.json``.
        extras: tensors that are not a lora_A or lora_B weight (biases, DoRA's magnitudes, saved
            modules), by their name in the file.
        dtype: how the factors are stored ("F32", "F16", "BF16"); in memory they are float32.
    """

    name: str
    deltas: dict[str, LowRankDelta]
    config: dict[str, Any]
    extras: dict[str, Array] = field(default_factory=dict)
    dtype: str = "F32"

    def __repr__(self) -> str:
        ranks = {delta.rank for delta in self.deltas.values()}
        span = "-".join(map(str, sorted({min(ranks), max(ranks)}))) if ranks else "0"
        return f"Adapter({self.name!r}, {len(self.deltas)} modules, rank {span}, {self.dtype})"

    @property
    def base(self) -> str:
        """The model it was trained on, as PEFT records it."""
        return str(self.config.get("base_model_name_or_path") or "")


def read_adapter(folder: Path, name: str = "") -> Adapter:
    """Read a PEFT LoRA folder.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: for messages; the folder's own name when empty.

    Raises:
        InputError: a file is missing, truncated or not a LoRA adapter.
    """
    config = read_config(folder)
    tensors, dtypes = read_tensors(folder / WEIGHTS)
    factors: dict[str, dict[str, Array]] = {}
    extras: dict[str, Array] = {}
    for key, tensor in tensors.items():
        module, factor = _split(key)
        if factor:
            factors.setdefault(module, {})[factor] = tensor
        else:
            extras[key] = tensor
    deltas = {m: _delta(m, factors[m], config, folder) for m in sorted(factors)}
    if not deltas:
        raise InputError(f"{folder / WEIGHTS} holds no lora_A and lora_B weights: not a LoRA.")
    stored = {dtypes[k] for k in tensors if _split(k)[1]}
    return Adapter(
        name or folder.name, deltas, config, extras, stored.pop() if len(stored) == 1 else "F32"
    )


def write_adapter(adapter: Adapter, folder: Path, beside: Mapping[str, Any] | None = None) -> None:
    """Write a plain PEFT folder, whole or not at all.

    Args:
        beside: further JSON files of the folder, content by name.

    The scaling of each delta is stored as ``lora_alpha`` (and ``alpha_pattern`` where modules
    differ), so that what PEFT loads is what ``adapter.deltas`` says.
    """
    from mergeforget.tensors import write_safetensors

    tensors = dict(adapter.extras)
    for module, delta in adapter.deltas.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = delta.a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = delta.b
    with whole(folder) as temporary, explained(folder):
        temporary.mkdir()
        write_safetensors(temporary / WEIGHTS, tensors, adapter.dtype)
        text = json.dumps(_config_of(adapter), indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        for name, content in (beside or {}).items():
            write_json(temporary / name, content)


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a PEFT LoRA folder, checked to be one."""
    if not (folder / CONFIG).is_file():
        what = "no folder" if not folder.is_dir() else f"no {CONFIG}"
        raise InputError(
            f"{folder} is not an adapter: there is {what} there. An adapter is a folder that PEFT "
            "wrote, for example RUN/over after `mergeforget train-pair`."
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"{folder / CONFIG} describes {kind!r}; only LORA adapters are read.")
    for fault in _faults(config):
        raise InputError(f"{folder / CONFIG} is malformed: {fault}.")
    return config


def read_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Every tensor of a safetensors file (float32 for the half types) and its stored dtype."""
    from mergeforget.tensors import read_safetensors

    return read_safetensors(path)


def scaling_of(config: dict[str, Any], module: str, rank: int) -> float:
    """``lora_alpha / rank`` of a module, with its alpha pattern and rsLoRA, as PEFT does."""
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha") or rank)
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def check_same_base(adapters: list[Adapter]) -> None:
    """Raise InputError where adapters change different modules, shapes or base models."""
    first = adapters[0]
    for other in adapters[1:]:
        if first.base and other.base and Path(first.base).name != Path(other.base).name:
            raise InputError(
                f"{first.name!r} was trained on {first.base} and {other.name!r} on {other.base}. "
                "Merging adapters of different models has no meaning; train both on one base with "
                "`mergeforget train-pair`."
            )
        for module in first.deltas.keys() & other.deltas.keys():
            here, there = first.deltas[module].shape, other.deltas[module].shape
            if here != there:
                raise InputError(
                    f"{module} is {here} in {first.name!r} and {there} in {other.name!r}: they "
                    "were trained on different base models."
                )


def _faults(config: dict[str, Any]) -> Iterator[str]:
    """What in a config would make its scaling mean nothing."""
    import re

    if not _is_number(config.get("lora_alpha", 1)):
        yield f"lora_alpha is {config['lora_alpha']!r}, and must be a number"
    for name in ("alpha_pattern", "rank_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
            yield f"{name} is {pattern!r}, and must give a number for each pattern"
            continue
        for key in pattern:
            try:
                re.compile(key)
            except re.error as error:
                yield f"{name} holds {key!r}, which is no regular expression ({error})"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _split(key: str) -> tuple[str, str]:
    """``base_model.model.X.lora_A.weight`` -> (``X``, ``a``); another key -> (key, "")."""
    for suffix, factor in ((".lora_A.weight", "a"), (".lora_B.weight", "b")):
        if key.endswith(suffix):
            return key.removesuffix(suffix).removeprefix(PREFIX), factor
    return key, ""


def _delta(
    module: str, factors: dict[str, Array], config: dict[str, Any], folder: Path
) -> LowRankDelta:
    if factors.keys() != {"a", "b"}:
        missing = "lora_B" if "a" in factors else "lora_A"
        raise InputError(f"{folder / WEIGHTS}: {module} has no {missing} weight.")
    a, b = factors["a"], factors["b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise InputError(
            f"{folder / WEIGHTS}: {module} has lora_A {a.shape} and lora_B {b.shape}; expected "
            "(rank, in) and (out, rank)."
        )
    return LowRankDelta(a, b, scaling_of(config, module, a.shape[0]))


def _pattern(pattern: Any, module: str, default: float) -> float:
    """PEFT's rule: a pattern's key matches a module's name, or the end of it after a dot."""
    import re

    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return float(value)
    return float(default)


def _config_of(adapter: Adapter) -> dict[str, Any]:
    """The config that gives every delta its rank and scaling when PEFT loads the folder."""
    import re

    ranks = {m: d.rank for m, d in adapter.deltas.items()}
    rank = max(ranks.values())
    alphas = {m: d.scaling * d.rank for m, d in adapter.deltas.items()}
    alpha = next((a for m, a in alphas.items() if ranks[m] == rank), float(rank))
    config = dict(adapter.config)
    config.update(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        use_rslora=False,
        rank_pattern={re.escape(m): r for m, r in ranks.items() if r != rank},
        alpha_pattern={re.escape(m): a for m, a in alphas.items() if a != alpha},
        inference_mode=True,
    )
    return config
