"""Compute how an adapter changes each tensor of its base, low-rank or not.

Besides ``scaling * B @ A``, PEFT trains whole modules (``modules_to_save``), biases of the base
(``bias``), a bias of lora_B (``lora_bias``) and magnitudes (DoRA). Each changes one tensor
exactly, given the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import PREFIX, Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, UsageError
from mergeforget.expert_factors import expert_of
from mergeforget.merge.checkpoint.compatible import (
    OUTPUT_BIASES,
    OUTPUTS,
    embedding_of,
    find_tensor,
    is_tied,
    output_of,
    plain_name,
)
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo
from mergeforget.merge.inputs import BASE_LAYER, NEEDS_THE_BASE
from mergeforget.merge.kernels.thresholds import blocks

Array = NDArray[Any]
CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}  # layers that store (in, out), in these models:
HAVE_CONV1D = {"gpt2", "openai-gpt", "decision_transformer", "imagegpt"}
MAGNITUDE, LORA_BIAS = ".lora_magnitude_vector", ".lora_B.bias"


@dataclass(frozen=True)
class ReplacedTensor:
    """A fully trained tensor, with the delta ``value - base``."""

    value: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor."""
        return _matrix(self.value)

    def rows(self, part: slice, origin: Array) -> Array:
        """Return the delta of some rows, given the rows ``origin`` of the base; (rows, columns)."""
        return self.value.reshape(self.shape)[part] - origin


@dataclass(frozen=True)
class AddedBias:
    """A bias of lora_B, ``scaling * value``, which is added to the bias of the layer."""

    value: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the bias."""
        return _matrix(self.value)

    def rows(self, part: slice, origin: Array) -> Array:
        """As ``ReplacedTensor.rows``."""
        return self.value.reshape(self.shape)[part]


@dataclass(frozen=True)
class DoraChange:
    """DoRA: every row has a trained length, ``m (W + s B A) / ||W + s B A|| - W``.

    Source: DoRA, arXiv:2402.09353, eq. 5; as in PEFT, the norm is that of each output row.
    """

    delta: LowRankDelta
    magnitude: Array  # (out,)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (out, in)."""
        return self.delta.shape

    def rows(self, part: slice, origin: Array) -> Array:
        """As ``ReplacedTensor.rows``."""
        moved = origin + self.delta.scaling * (self.delta.b[part] @ self.delta.a)
        factor = self.magnitude[part] / np.linalg.norm(moved, axis=1)
        change: Array = factor[:, None] * moved - origin
        return change


@dataclass(frozen=True)
class SummedChange:
    """A fully trained tensor with LoRA: the sum of both deltas."""

    one: Change
    other: ReplacedTensor | AddedBias

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight."""
        return self.other.shape

    def rows(self, part: slice, origin: Array) -> Array:
        """As ``ReplacedTensor.rows``."""
        return rows_of(self.one, part, origin) + self.other.rows(part, origin)


class DenseChange(Protocol):
    """A delta whose rows are computed on demand."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor, as (rows, columns)."""

    def rows(self, part: slice, origin: Array) -> Array:
        """As ``ReplacedTensor.rows``."""


Change = LowRankDelta | DenseChange


@dataclass(frozen=True)
class TensorChange:
    """Change of one tensor of the base.

    Attributes:
        name: Name for filters and random streams.
        changes: Deltas to merge.
        candidate: How they are merged, with one weight per delta.
    """

    name: str
    changes: Sequence[Change]
    candidate: Candidate


def rows_of(change: Change, part: slice, origin: Array) -> Array:
    """Return some rows of any delta, given the rows ``origin`` of the base; (rows, columns)."""
    if isinstance(change, LowRankDelta):
        return np.asarray(change.scaling * (change.b[part] @ change.a))
    return change.rows(part, origin)


def changes_of(
    adapter: Adapter, config: dict[str, Any], folder: Path | None = None
) -> dict[str, Change]:
    """Return the delta of each tensor of the base.

    Two changes of one tensor by one adapter, such as ``lora_bias`` and a trained bias, are added
    up.

    Args:
        config: Content of the base's ``config.json``.
        folder: Folder of the base, to look up the type of its modules.

    Raises:
        InputError: A tensor of the adapter cannot be merged into the base.
    """
    changes: dict[str, Change] = {}
    turned = turned_modules(adapter, config, folder)
    for module, delta in adapter.deltas.items():
        changes[f"{module}.weight"] = in_base_layout(delta, module in turned)
    # magnitudes first, because they decide whether factors belong to DoRA
    for key in sorted(adapter.extras, key=lambda key: not key.endswith(MAGNITUDE)):
        value = adapter.extras[key]
        name = base_name(key)
        if name.endswith(MAGNITUDE):
            module = name.removesuffix(MAGNITUDE)
            changes[f"{module}.weight"] = _decomposed(adapter, module, value, module in turned)
        elif name.endswith(LORA_BIAS):
            module = name.removesuffix(LORA_BIAS)
            added = AddedBias(_delta_of(adapter, module, key).scaling * value)
            _add(changes, f"{module}.bias", added, adapter)
        elif ".lora_" in name or name.rpartition(".")[2] not in ("weight", "bias"):
            raise InputError(
                f"{adapter.name!r} contains {key}, which cannot be merged into the base. Convert "
                "it with `mergeforget extract-lora` first."
            )
        else:
            _add(changes, name, ReplacedTensor(value), adapter)
    return changes


def base_name(key: str) -> str:
    """Return the name of the base tensor that a tensor of an adapter file replaces."""
    return key.removeprefix(PREFIX).replace(BASE_LAYER, ".")


def without_copies(adapter: Adapter, model: Checkpoint) -> Adapter:
    """Return the adapter without the frozen base weights that PEFT stores with LoRA on lm_head.

    They have no delta and are not a product of factors. A weight that differs from the base was
    trained and is kept.
    """
    extras = {
        key: value
        for key, value in adapter.extras.items()
        if not key.endswith(f"{BASE_LAYER}weight") or not _is_in(model, base_name(key), value)
    }
    return replace(adapter, extras=extras)


def with_new_tokens(model: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """Return the base with rows for the tokens that were added to it before the training.

    PEFT stores the whole embeddings of a base that ``resize_token_embeddings`` enlarged. Their new
    rows are those of the adapters, so that these do not change them.

    Raises:
        InputError: The adapters have different new rows, or not those of the embedding, the output
            layer and its bias.
    """
    embedding, output = embedding_of(model), output_of(model)
    if embedding is None or not any(adapter.extras for adapter in adapters):
        return model
    tied = is_tied(model)  # reads both matrices
    added: dict[str, Array] = {}
    owners: dict[str, str] = {}
    for adapter in adapters:
        for name, rows in _new_rows(adapter, model, embedding, tied):
            owner = owners.setdefault(name, adapter.name)
            if not np.array_equal(added.setdefault(name, rows), rows):
                raise InputError(
                    f"{owner!r} and {adapter.name!r} have different rows of {name} for the "
                    "tokens that were added to their base. Merge each with --full, and the "
                    "models with `mergeforget merge-models`."
                )
    if not added:
        return model
    matrices = [rows for rows in added.values() if rows.ndim > 1]
    if tied and matrices:  # rows that are not stored are those of the other matrix
        of_both = added.get(embedding.name, matrices[0])
        added = dict.fromkeys([embedding.name, *OUTPUTS], of_both) | added
    needed = {embedding.name, *([output.name] if output else [])}
    needed |= {name for name in model.tensors if plain_name(name) in OUTPUT_BIASES}
    if missing := sorted(needed - added.keys()):
        raise InputError(
            f"{min(owners.values())!r} has rows for new tokens in {', '.join(added)}, but not in "
            f"{missing[0]}. Save both, with modules_to_save=['embed_tokens', 'lm_head']."
        )
    count = embedding.shape[0] + len(added[embedding.name])
    tensors = {
        name: info._replace(shape=(count, *info.shape[1:])) if name in added else info
        for name, info in model.tensors.items()
    }
    config = _resized(model.config, embedding.shape[0], count)
    if isinstance(text := config.get("text_config"), dict):  # which omits its default
        config["text_config"] = text | {"vocab_size": count}
    elif config == model.config:
        config["vocab_size"] = count
    return replace(model, tensors=tensors, added=added, config=config)


def _new_rows(
    adapter: Adapter, model: Checkpoint, embedding: TensorInfo, tied: bool
) -> Iterator[tuple[str, Array]]:
    """Yield the name of each embedding that is longer than the base's, and its further rows."""
    for key, value in adapter.extras.items():
        name = base_name(key)
        info = find_tensor(model, name)
        if info is None and plain_name(name) in OUTPUTS and tied:
            info = embedding._replace(name=name)
        resized = {plain_name(embedding.name), *OUTPUTS, *OUTPUT_BIASES}
        if info is None or plain_name(info.name) not in resized:
            continue
        if value.shape[1:] == info.shape[1:] and len(value) > info.shape[0]:
            yield info.name, value[info.shape[0] :]


def _resized(section: dict[str, Any], size: int, count: int) -> dict[str, Any]:
    """Return a section of a config with another number of tokens, also in its own sections.

    Another vocabulary, such as that of an audio encoder, is kept.
    """
    resized = {
        key: _resized(value, size, count) if isinstance(value, dict) else value
        for key, value in section.items()
    }
    return resized | {"vocab_size": count} if section.get("vocab_size") == size else resized


def _is_in(model: Checkpoint, name: str, value: Array) -> bool:
    info = find_tensor(model, name)
    if info is None and plain_name(name) in OUTPUTS:
        info = embedding_of(model)  # for a tied model
    if info is None or info.shape != value.shape:
        return False
    matrix = value.reshape(info.matrix)
    return all(np.array_equal(model.read(info, part), matrix[part]) for part in blocks(info.matrix))


def products_only(adapter: Adapter) -> Adapter:
    """Return the adapter with only its products of factors, and without its tokenizer."""
    config = {k: v for k, v in adapter.config.items() if k not in NEEDS_THE_BASE}
    return replace(adapter, extras={}, config=config | {"bias": "none"}, tokenizer=None)


def check_products(name: str, step: TensorChange) -> None:
    """Raise UsageError if the merge requires products of factors but a change is not one."""
    if not all(isinstance(change, LowRankDelta) for change in step.changes):
        raise UsageError(
            f"{name} has a change other than B @ A (DoRA, or fully trained weights). Such "
            "changes are merged without truncation: add --space delta, without --rank."
        )


def turned_modules(adapter: Adapter, config: dict[str, Any], folder: Path | None) -> set[str]:
    """Return the modules that the base stores as (in, out), as GPT-2's Conv1D does.

    Known architectures decide it, or the type of the module in the base. PEFT's ``fan_in_fan_out``
    does not: it is the value of the last module that PEFT visited, which is false for all modules
    if lm_head is one of them, and PEFT ignores it for linear layers.

    Raises:
        InputError: ``fan_in_fan_out`` is set, transformers cannot build the base, and a module is
            square, so that its shape does not decide either.
    """
    modules = {
        module
        for module in adapter.deltas
        if module not in adapter.embeddings
        and expert_of(module) is None
        and not adapter.adapts_parameter(module)
    }
    if config.get("model_type") in HAVE_CONV1D:
        return {module for module in modules if module.rpartition(".")[2] in CONV1D}
    if not adapter.config.get("fan_in_fan_out"):
        return set()
    from transformers.pytorch_utils import Conv1D

    from mergeforget.merge.checkpoint.saved_names import skeleton_of

    skeleton = skeleton_of(folder) if folder else None
    if skeleton is None:
        square = sorted(m for m in modules if len(set(adapter.deltas[m].shape)) == 1)
        if square:
            raise InputError(
                f"{adapter.name!r} has fan_in_fan_out, and transformers cannot build the base, so "
                f"that the layout of {square[0]} is unknown. Set fan_in_fan_out to false in "
                "adapter_config.json if the base has linear layers."
            )
        return modules
    layers = dict(skeleton.named_modules(remove_duplicate=False))
    return {module for module in modules if isinstance(layers.get(module), Conv1D)}


def in_base_layout(delta: LowRankDelta, turned: bool) -> LowRankDelta:
    """Return the delta in the layout of the base: (in, out) for GPT-2's Conv1D."""
    return LowRankDelta(delta.b.T, delta.a.T, delta.scaling) if turned else delta


def _add(
    changes: dict[str, Change], name: str, change: ReplacedTensor | AddedBias, adapter: Adapter
) -> None:
    """Add a change of a tensor to an existing one, if any.

    Raises:
        InputError: DoRA and a replaced weight, which cannot be added, or different shapes.
    """
    earlier = changes.get(name)
    if earlier is None:
        changes[name] = change
        return
    if earlier.shape != change.shape:
        raise InputError(
            f"{adapter.name!r} changes {name} with the shapes {change.shape} and {earlier.shape}."
        )
    if isinstance(earlier, DoraChange | SummedChange):
        raise InputError(
            f"{adapter.name!r} changes {name} by DoRA and also replaces its weight, which is not "
            "supported. Convert it with `mergeforget extract-lora` first."
        )
    changes[name] = SummedChange(earlier, change)


def _decomposed(adapter: Adapter, module: str, magnitude: Array, turned: bool) -> DoraChange:
    if turned:
        raise InputError(
            f"{adapter.name!r} has DoRA on a Conv1D (fan_in_fan_out), which is not supported. "
            "Convert it with `mergeforget extract-lora` first."
        )
    if module in adapter.embeddings:  # its norm is per column, over every token
        raise InputError(
            f"{adapter.name!r} has DoRA on the embedding {module}, which is not supported. Convert "
            "it with `mergeforget extract-lora` first."
        )
    return DoraChange(_delta_of(adapter, module, MAGNITUDE), magnitude.reshape(-1))


def _delta_of(adapter: Adapter, module: str, key: str) -> LowRankDelta:
    if module not in adapter.deltas:
        raise InputError(f"{adapter.name!r} contains {key} of {module}, but no lora_A and lora_B.")
    return adapter.deltas[module]


def _matrix(value: Array) -> tuple[int, int]:
    """Return the shape of a tensor as (rows, columns), as ``TensorInfo.matrix`` does."""
    if value.ndim < 2:
        return 1, value.size
    return value.shape[0], value.size // max(1, value.shape[0])
