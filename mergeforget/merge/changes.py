"""What an adapter changes of each tensor of its base, also where that is no product of factors.

Beside ``scaling * B @ A`` PEFT trains whole modules (``modules_to_save``), biases of the base
(``bias``), a bias of lora_B (``lora_bias``) and DoRA's magnitudes. Each is a change of one tensor
that is exact once the base is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import PREFIX, Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.inputs import NEEDS_THE_BASE

Array = NDArray[Any]
MAGNITUDE, LORA_BIAS = ".lora_magnitude_vector", ".lora_B.bias"


@dataclass(frozen=True)
class Replaced:
    """A tensor that was trained whole: ``value - base``."""

    value: Array

    @property
    def shape(self) -> tuple[int, int]:
        return _matrix(self.value)

    def rows(self, part: slice, origin: Array) -> Array:
        """The change of some rows, where the base holds ``origin``; both (rows, columns)."""
        return self.value.reshape(self.shape)[part] - origin


@dataclass(frozen=True)
class Added:
    """A bias of lora_B, ``scaling * value``: it adds to the layer's own."""

    value: Array

    @property
    def shape(self) -> tuple[int, int]:
        return _matrix(self.value)

    def rows(self, part: slice, origin: Array) -> Array:
        """As ``Replaced.rows``."""
        return self.value.reshape(self.shape)[part]


@dataclass(frozen=True)
class Decomposed:
    """DoRA: every row is brought to a trained length, ``m (W + s B A) / ||W + s B A|| - W``.

    Source: DoRA, arXiv:2402.09353, eq. 5; PEFT's merge takes the norm of each output's row.
    """

    delta: LowRankDelta
    magnitude: Array  # (out,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.delta.shape

    def rows(self, part: slice, origin: Array) -> Array:
        """As ``Replaced.rows``."""
        moved = origin + self.delta.scaling * (self.delta.b[part] @ self.delta.a)
        factor = self.magnitude[part] / np.linalg.norm(moved, axis=1)
        change: Array = factor[:, None] * moved - origin
        return change


Change = LowRankDelta | Replaced | Added | Decomposed


@dataclass(frozen=True)
class Step:
    """How one tensor of the base is changed.

    Attributes:
        name: by which filters and random streams know it.
        changes: what is merged.
        candidate: how, with one weight for each of the changes.
    """

    name: str
    changes: Sequence[Change]
    candidate: Candidate


def changes_of(adapter: Adapter) -> dict[str, Change]:
    """Tensor of the base -> its change.

    Raises:
        InputError: a tensor of the adapter is none that can be folded.
    """
    turned = bool(adapter.config.get("fan_in_fan_out"))
    found: dict[str, Change] = {}
    for module, delta in adapter.deltas.items():
        found[f"{module}.weight"] = laid(delta, turned)
    for key, value in adapter.extras.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if name.endswith(MAGNITUDE):
            module = name.removesuffix(MAGNITUDE)
            found[f"{module}.weight"] = _decomposed(adapter, module, value, turned)
        elif name.endswith(LORA_BIAS):
            module = name.removesuffix(LORA_BIAS)
            found[f"{module}.bias"] = Added(_delta_of(adapter, module, key).scaling * value)
        elif ".lora_" in name or name.rpartition(".")[2] not in ("weight", "bias"):
            raise InputError(
                f"{adapter.name!r} holds {key}, which is no change of a tensor of the base that is "
                "known here. Fold the adapter with PEFT's merge_and_unload and merge the models "
                "with --model."
            )
        else:
            found[name] = Replaced(value)
    return found


def bare(adapter: Adapter) -> Adapter:
    """The adapter without what is no product of factors."""
    config = {k: v for k, v in adapter.config.items() if k not in NEEDS_THE_BASE}
    return replace(adapter, extras={}, config=config | {"bias": "none"})


def check_products(name: str, step: Step) -> None:
    """Raise UsageError where a change that is no product of factors would have to be one."""
    if not all(isinstance(change, LowRankDelta) for change in step.changes):
        raise UsageError(
            f"{name} is changed by more than B @ A, by DoRA or because it was trained whole. Such "
            "changes are merged as they are: add --space delta, without --rank."
        )


def laid(delta: LowRankDelta, turned: bool) -> LowRankDelta:
    """The change as the base stores its weights: (in, out) in GPT-2's Conv1D."""
    return LowRankDelta(delta.b.T, delta.a.T, delta.scaling) if turned else delta


def _decomposed(adapter: Adapter, module: str, magnitude: Array, turned: bool) -> Decomposed:
    if turned:
        raise InputError(
            f"{adapter.name!r} has DoRA on a Conv1D (fan_in_fan_out), which is not folded here. "
            "Use PEFT's merge_and_unload and merge the models with --model."
        )
    return Decomposed(_delta_of(adapter, module, MAGNITUDE), magnitude.reshape(-1))


def _delta_of(adapter: Adapter, module: str, key: str) -> LowRankDelta:
    if module not in adapter.deltas:
        raise InputError(f"{adapter.name!r} holds {key} of {module}, but no lora_A and lora_B.")
    return adapter.deltas[module]


def _matrix(value: Array) -> tuple[int, int]:
    """A tensor's shape as (rows, columns), as ``TensorInfo.matrix`` gives it."""
    if value.ndim < 2:
        return 1, value.size
    return value.shape[0], value.size // max(1, value.shape[0])
