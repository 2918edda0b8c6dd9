"""Adds an adapter to a loaded model in place, and restores the original weights bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.errors import InputError, suggest
from mergeforget.merge.inputs import check_plain

if TYPE_CHECKING:
    from torch import Tensor, nn

Buffers = dict[str, Any]  # module -> a tensor that held its merged weight


@contextmanager
def applied(model: nn.Module, adapter: Adapter, buffers: Buffers | None = None) -> Iterator[None]:
    """Add an adapter's change to a model's weights while the block runs.

    The original weights are kept, not recomputed, so they are restored bit for bit, also after an
    error. The sum is computed in float32 and rounded once to the weight's dtype.

    Args:
        model: a transformers model, with the module names that the adapter knows.
        adapter: its change is added to the weight of each of its modules.
        buffers: a dict, empty at first, that is passed with every candidate so that the memory of
            the merged weights is reused. It holds the weights of the candidate whose block runs.

    Raises:
        InputError: the model has no such module, its weight has another shape, or the adapter
            changes more than that, by DoRA for example, see ``inputs.check_plain``.
    """
    import torch

    check_plain(adapter, done="applied")
    originals = {name: weight_of(model, name, delta) for name, delta in adapter.deltas.items()}
    try:
        with torch.no_grad():
            for name, weight in originals.items():
                room = None if buffers is None else buffers.get(name)
                transposed = is_transposed(model.get_submodule(name))
                merged = _added(weight.data, adapter.deltas[name], transposed, room)
                if buffers is not None:
                    buffers[name] = merged
                # a new parameter, not new data: a tied embedding keeps its own
                _put(model, name, torch.nn.Parameter(merged, weight.requires_grad))
        yield
    finally:
        for name, weight in originals.items():
            _put(model, name, weight)


def _put(model: nn.Module, name: str, weight: nn.Parameter) -> None:
    model.get_submodule(name).weight = weight


def _added(weight: Tensor, delta: LowRankDelta, transposed: bool, room: Tensor | None) -> Tensor:
    """``weight + scaling * b @ a``, written into ``room`` if its shape and device match."""
    import torch

    a = torch.from_numpy(np.ascontiguousarray(delta.a)).to(weight.device, torch.float32)
    b = torch.from_numpy(np.ascontiguousarray(delta.b)).to(weight.device, torch.float32)
    left, right = (a.T, b.T) if transposed else (b, a)
    if weight.dtype != torch.float32:
        wide = torch.addmm(weight.float(), left, right, alpha=delta.scaling)
        return wide.to(weight.dtype)
    if room is None or room.shape != weight.shape or room.device != weight.device:
        room = torch.empty_like(weight)
    return torch.addmm(weight, left, right, alpha=delta.scaling, out=room)


def weight_of(model: nn.Module, name: str, delta: LowRankDelta) -> nn.Parameter:
    """The weight of the module that a delta changes.

    Raises:
        InputError: the model has no such module, or its weight has another shape.
    """
    try:
        module = model.get_submodule(name)
        weight: Any = module.weight
    except AttributeError as error:
        known = [n for n, m in model.named_modules() if hasattr(m, "weight")]
        raise InputError(
            f"The model has no module {name!r} with a weight.{suggest(name, known)} The adapter "
            "was trained on another model."
        ) from error
    if tuple(weight.shape) != (delta.shape[::-1] if is_transposed(module) else delta.shape):
        raise InputError(
            f"{name} is {tuple(weight.shape)} in the model, and the adapter changes a weight of "
            f"{delta.shape}: it was trained on another model."
        )
    found: nn.Parameter = weight
    return found


def is_transposed(module: nn.Module) -> bool:
    """Whether a module stores its weight as (in, out), as GPT-2's Conv1D does.

    PEFT's ``fan_in_fan_out`` does not tell: it is that of the module which PEFT came to last.
    """
    return type(module).__name__ == "Conv1D"
