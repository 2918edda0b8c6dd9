"""The change that an adapter makes to each tensor of its base, low-rank or not.

Beside ``scaling * B @ A`` PEFT trains whole modules (``modules_to_save``), biases of the base
(``bias``), a bias of lora_B (``lora_bias``) and DoRA's magnitudes. Each is a change of one tensor
that is exact once the base is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import PREFIX, Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, UsageError
from mergeforget.expert_factors import expert_of
from mergeforget.merge.checkpoint.compatible import OUTPUTS, embedding_of, find_tensor, plain_name
from mergeforget.merge.checkpoint.reader import Checkpoint
from mergeforget.merge.inputs import BASE_LAYER, NEEDS_THE_BASE
from mergeforget.merge.kernels.thresholds import blocks

Array = NDArray[Any]
CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}  # layers that store (in, out) in these models:
HAVE_CONV1D = {"gpt2", "openai-gpt", "decision_transformer", "imagegpt"}
MAGNITUDE, LORA_BIAS = ".lora_magnitude_vector", ".lora_B.bias"


@dataclass(frozen=True)
class ReplacedTensor:
    """A tensor that was trained whole: ``value - base``."""

    value: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor."""
        return _matrix(self.value)

    def rows(self, part: slice, origin: Array) -> Array:
        """The change of some rows, where the base holds ``origin``; both (rows, columns)."""
        return self.value.reshape(self.shape)[part] - origin


@dataclass(frozen=True)
class AddedBias:
    """A bias of lora_B, ``scaling * value``: it adds to the layer's own."""

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
    """DoRA: every row is brought to a trained length, ``m (W + s B A) / ||W + s B A|| - W``.

    Source: DoRA, arXiv:2402.09353, eq. 5; PEFT's merge takes the norm of each output's row.
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
    """A tensor that was trained whole, and what LoRA adds to it: the sum of both changes."""

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
    """A change whose rows are computed where they are needed."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor, as (rows, columns)."""

    def rows(self, part: slice, origin: Array) -> Array:
        """As ``ReplacedTensor.rows``."""


Change = LowRankDelta | DenseChange


@dataclass(frozen=True)
class TensorChange:
    """How one tensor of the base is changed.

    Attributes:
        name: by which filters and random streams know it.
        changes: what is merged.
        candidate: how, with one weight for each of the changes.
    """

    name: str
    changes: Sequence[Change]
    candidate: Candidate


def rows_of(change: Change, part: slice, origin: Array) -> Array:
    """Some rows of any change, where the base holds ``origin``; both (rows, columns)."""
    if isinstance(change, LowRankDelta):
        return np.asarray(change.scaling * (change.b[part] @ change.a))
    return change.rows(part, origin)


def changes_of(adapter: Adapter, config: dict[str, Any]) -> dict[str, Change]:
    """Tensor of the base -> its change.

    What an adapter changes of one tensor in two ways, as ``lora_bias`` beside a trained bias, adds
    up.

    Args:
        config: of the base, the content of its ``config.json``.

    Raises:
        InputError: a tensor of the adapter is none that can be folded.
    """
    found: dict[str, Change] = {}
    for module, delta in adapter.deltas.items():
        plain = module not in adapter.embeddings and expert_of(module) is None
        turned = plain and is_turned(adapter, module, config)
        found[f"{module}.weight"] = laid(delta, turned)
    # magnitudes first: with them a module's factors are DoRA's
    for key in sorted(adapter.extras, key=lambda key: not key.endswith(MAGNITUDE)):
        value = adapter.extras[key]
        name = base_name(key)
        if name.endswith(MAGNITUDE):
            module = name.removesuffix(MAGNITUDE)
            turned = is_turned(adapter, module, config)
            found[f"{module}.weight"] = _decomposed(adapter, module, value, turned)
        elif name.endswith(LORA_BIAS):
            module = name.removesuffix(LORA_BIAS)
            added = AddedBias(_delta_of(adapter, module, key).scaling * value)
            _add(found, f"{module}.bias", added, adapter)
        elif ".lora_" in name or name.rpartition(".")[2] not in ("weight", "bias"):
            raise InputError(
                f"{adapter.name!r} holds {key}, which is no change of a tensor of the base that is "
                "known here. Convert it with `mergeforget extract-lora` first."
            )
        else:
            _add(found, name, ReplacedTensor(value), adapter)
    return found


def base_name(key: str) -> str:
    """The tensor of the base that a tensor of an adapter's file replaces."""
    return key.removeprefix(PREFIX).replace(BASE_LAYER, ".")


def without_copies(adapter: Adapter, model: Checkpoint) -> Adapter:
    """The adapter without the base's own frozen weights, which PEFT stores beside LoRA on lm_head.

    They change nothing, and would be no product of factors. One that is not the base's was
    trained, and is kept.
    """
    extras = {
        key: value
        for key, value in adapter.extras.items()
        if not key.endswith(f"{BASE_LAYER}weight") or not _is_in(model, base_name(key), value)
    }
    return replace(adapter, extras=extras)


def _is_in(model: Checkpoint, name: str, value: Array) -> bool:
    info = find_tensor(model, name)
    if info is None and plain_name(name) in OUTPUTS:
        info = embedding_of(model)  # of a tied model
    if info is None or info.shape != value.shape:
        return False
    matrix = value.reshape(info.matrix)
    return all(np.array_equal(model.read(info, part), matrix[part]) for part in blocks(info.matrix))


def bare(adapter: Adapter) -> Adapter:
    """The adapter without what is no product of factors."""
    config = {k: v for k, v in adapter.config.items() if k not in NEEDS_THE_BASE}
    return replace(adapter, extras={}, config=config | {"bias": "none"})


def check_products(name: str, step: TensorChange) -> None:
    """Raise UsageError where a change that is no product of factors would have to be one."""
    if not all(isinstance(change, LowRankDelta) for change in step.changes):
        raise UsageError(
            f"{name} is changed by more than B @ A, by DoRA or because it was trained whole. Such "
            "changes are merged as they are: add --space delta, without --rank."
        )


def is_turned(adapter: Adapter, module: str, config: dict[str, Any]) -> bool:
    """Whether the base stores the module's weight as (in, out), as GPT-2's Conv1D does.

    The model tells where it is known. PEFT's ``fan_in_fan_out`` is that of the module which PEFT
    came to last: false for all where lm_head is one of them.
    """
    if config.get("model_type") in HAVE_CONV1D:
        return module.rpartition(".")[2] in CONV1D
    return bool(adapter.config.get("fan_in_fan_out"))


def laid(delta: LowRankDelta, turned: bool) -> LowRankDelta:
    """The change as the base stores its weights: (in, out) in GPT-2's Conv1D."""
    return LowRankDelta(delta.b.T, delta.a.T, delta.scaling) if turned else delta


def _add(
    found: dict[str, Change], name: str, change: ReplacedTensor | AddedBias, adapter: Adapter
) -> None:
    """Note a change of a tensor beside the one that is known, if one is.

    Raises:
        InputError: DoRA and a weight of its own, which do not add up, or other shapes.
    """
    known = found.get(name)
    if known is None:
        found[name] = change
        return
    if known.shape != change.shape:
        raise InputError(
            f"{adapter.name!r} holds {name} as {change.shape} and changes it as {known.shape}."
        )
    if isinstance(known, DoraChange | SummedChange):
        raise InputError(
            f"{adapter.name!r} changes {name} by DoRA and holds another base weight for it, which "
            "is not folded here. Convert it with `mergeforget extract-lora` first."
        )
    found[name] = SummedChange(known, change)


def _decomposed(adapter: Adapter, module: str, magnitude: Array, turned: bool) -> DoraChange:
    if turned:
        raise InputError(
            f"{adapter.name!r} has DoRA on a Conv1D (fan_in_fan_out), which is not folded here. "
            "Convert it with `mergeforget extract-lora` first."
        )
    return DoraChange(_delta_of(adapter, module, MAGNITUDE), magnitude.reshape(-1))


def _delta_of(adapter: Adapter, module: str, key: str) -> LowRankDelta:
    if module not in adapter.deltas:
        raise InputError(f"{adapter.name!r} holds {key} of {module}, but no lora_A and lora_B.")
    return adapter.deltas[module]


def _matrix(value: Array) -> tuple[int, int]:
    """A tensor's shape as (rows, columns), as ``TensorInfo.matrix`` gives it."""
    if value.ndim < 2:
        return 1, value.size
    return value.shape[0], value.size // max(1, value.shape[0])
