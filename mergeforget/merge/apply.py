"""Add an adapter to a loaded model in place, and restore the original weights bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergeforget.adapter import Adapter, LowRankDelta, adapts_parameter
from mergeforget.errors import InputError, suggest
from mergeforget.expert_factors import expert_of, module_of, parameter_of
from mergeforget.merge.inputs import check_plain
from mergeforget.models import check_resident

if TYPE_CHECKING:
    from torch import Tensor, nn

Buffers = dict[str, Any]  # by parameter: memory of a merged weight


@contextmanager
def applied(model: nn.Module, adapter: Adapter, buffers: Buffers | None = None) -> Iterator[None]:
    """Add an adapter's delta to the weights of a model inside the block.

    The original weights are stored, not recomputed, so they are restored bit for bit, also after an
    error. The sum is computed in float32 and rounded once to the weight's dtype.

    Args:
        model: A transformers model with the modules of the adapter.
        adapter: Adapter whose deltas are added to the weights.
        buffers: Dictionary, initially empty, that is passed with every candidate so that the memory
            of the merged weights is reused.

    Raises:
        InputError: The model has no such module, its weight has another shape, or the adapter
            has other changes, for example DoRA; see ``inputs.check_plain``.
        ResourceError: Weights are offloaded.
    """
    import torch

    check_plain(adapter, done="applied")
    check_resident(model, "An adapter that is added to the weights")
    changes: dict[str, list[tuple[ChangedWeight, LowRankDelta]]] = {}
    for name, delta in adapter.deltas.items():
        target = changed_weight(model, name, delta, adapter.config)
        changes.setdefault(f"{target.module}.{target.parameter}", []).append((target, delta))
    originals = {key: targets[0][0].of(model) for key, targets in changes.items()}
    try:
        with torch.no_grad():
            for key, weight in originals.items():
                buffer = None if buffers is None else buffers.get(key)
                merged = _added(weight.data, changes[key], buffer)
                if buffers is not None:
                    buffers[key] = merged
                # a new parameter, not new data, so that a tied embedding does not change
                changes[key][0][0].put(model, torch.nn.Parameter(merged, weight.requires_grad))
        yield
    finally:
        for key, weight in originals.items():
            changes[key][0][0].put(model, weight)


@dataclass(frozen=True)
class ChangedWeight:
    """The weight matrix of a loaded model that a delta changes.

    Attributes:
        expert: Index in a parameter with one matrix per expert; None for a plain matrix.
        transposed: Whether the matrix is stored as (in, out).
    """

    module: str
    parameter: str = "weight"
    expert: int | None = None
    transposed: bool = False

    def of(self, model: nn.Module) -> nn.Parameter:
        """Parameter that contains the matrix."""
        found: nn.Parameter = getattr(model.get_submodule(self.module), self.parameter)
        return found

    def put(self, model: nn.Module, parameter: nn.Parameter) -> None:
        """Replace the parameter."""
        setattr(model.get_submodule(self.module), self.parameter, parameter)


def changed_weight(
    model: nn.Module, name: str, delta: LowRankDelta, config: Mapping[str, Any]
) -> ChangedWeight:
    """Return the matrix that a delta changes.

    Args:
        name: Module of an adapter, or an expert if the model stores experts in one parameter.
        config: Configuration of the adapter.

    Raises:
        InputError: The model has no such module or parameter, or it has another shape.
    """
    expert_name = expert_of(name)
    if expert_name is None:
        as_stored = adapts_parameter(config, name)
        weight_of(model, name, delta, as_stored=as_stored)
        transposed = not as_stored and is_transposed(model.get_submodule(name))
        return ChangedWeight(name, transposed=transposed)
    wrapper, expert = expert_name
    module = _module(model, module_of(wrapper))
    parameter_names = [key for key, _ in module.named_parameters(recurse=False)]
    key = parameter_of(wrapper, parameter_names, config.get("target_parameters") or [])
    parameter = getattr(module, key)
    stacked = parameter.ndim == 3
    turned = stacked and bool(getattr(module, "is_transposed", False))
    shape = tuple(parameter.shape[-2:])
    expected_shape = delta.shape[::-1] if turned else delta.shape
    if shape != expected_shape or expert >= (parameter.shape[0] if stacked else 1):
        raise InputError(
            f"{name} is {shape} in the model, and the adapter changes a weight of "
            f"{expected_shape}: it was trained on another model."
        )
    return ChangedWeight(module_of(wrapper), key, expert if stacked else None, turned)


def _added(
    weight: Tensor, changes: Sequence[tuple[ChangedWeight, LowRankDelta]], out: Tensor | None
) -> Tensor:
    """Return the weight plus its deltas, in ``room`` if its shape, dtype and device match."""
    import torch

    if out is None or (out.shape, out.dtype, out.device) != (
        weight.shape, weight.dtype, weight.device
    ):  # fmt: skip
        out = torch.empty_like(weight)
    if changes[0][0].expert is not None:
        out.copy_(weight)  # some experts may have no delta
    for target, delta in changes:
        expert = slice(None) if target.expert is None else target.expert
        a = torch.from_numpy(np.ascontiguousarray(delta.a)).to(weight.device, torch.float32)
        b = torch.from_numpy(np.ascontiguousarray(delta.b)).to(weight.device, torch.float32)
        left, right = (a.T, b.T) if target.transposed else (b, a)
        if weight.dtype == torch.float32:
            torch.addmm(weight[expert], left, right, alpha=delta.scaling, out=out[expert])
        else:
            out[expert] = torch.addmm(weight[expert].float(), left, right, alpha=delta.scaling)
    return out


def weight_of(
    model: nn.Module, name: str, delta: LowRankDelta, *, as_stored: bool = False
) -> nn.Parameter:
    """Return the weight of the module that a delta changes.

    Args:
        as_stored: The delta has the shape of the stored weight, see ``Adapter.adapts_parameter``.

    Raises:
        InputError: The model has no such module, or its weight has another shape.
    """
    module = _module(model, name)
    weight: Any = getattr(module, "weight", None)
    if weight is None:
        raise _unknown(model, name)
    turned = is_transposed(module) and not as_stored
    if tuple(weight.shape) != (delta.shape[::-1] if turned else delta.shape):
        raise InputError(
            f"{name} is {tuple(weight.shape)} in the model, and the adapter changes a weight of "
            f"{delta.shape}: it was trained on another model."
        )
    parameter: nn.Parameter = weight
    return parameter


def transposed_parameter(model: nn.Module, adapters: Sequence[Adapter]) -> str | None:
    """Return the first module that stores (in, out) and whose parameter itself is adapted.

    Its delta is (in, out) too, so it cannot be applied as ``x A^T B^T`` to the module's input.
    """
    for adapter in adapters:
        for name in adapter.deltas:
            if adapter.adapts_parameter(name) and expert_of(name) is None:
                if is_transposed(_module(model, name)):
                    return name
    return None


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise _unknown(model, name) from error


def _unknown(model: nn.Module, name: str) -> InputError:
    known = [n for n, m in model.named_modules() if hasattr(m, "weight")]
    return InputError(
        f"The model has no module {name!r} with a weight.{suggest(name, known)} The adapter "
        "was trained on another model."
    )


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module stores its weight as (in, out), as GPT-2's Conv1D does.

    PEFT's ``fan_in_fan_out`` is not reliable: it is the value of the last module that PEFT visited.
    """
    return type(module).__name__ == "Conv1D"
