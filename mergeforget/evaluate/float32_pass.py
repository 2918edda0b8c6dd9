"""Runs the forward passes of a half-precision model in float32, one block's weights at a time.

Rounding to half precision changes logits by a few per cent, and so may a wrong position or a mask
that is ignored. In float32, rounding is three orders of magnitude smaller, so that the two can be
distinguished. Casting a whole model takes three times its memory. Here, each layer is cast when its
forward pass begins and gets its own weights back when the pass ends; embeddings and output layer
are cast during the whole pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mergeforget.evaluate.decoding import without_peft

HALF = (torch.bfloat16, torch.float16)
NEEDS_HALF = ("flash", "kernels-community")  # attention kernels that reject float32


@dataclass
class Float32Pass:
    """The weights that are currently cast, and whether any module used half precision.

    Attributes:
        pure: False once a module received or returned half precision, or has quantised weights.
    """

    pure: bool = True
    _restore: dict[nn.Module, list[tuple[dict[str, Any], str, Tensor]]] = field(
        default_factory=dict
    )

    def enter(self, unit: nn.Module, modules: Sequence[nn.Module]) -> None:
        """Cast the weights of some modules for the forward pass of one of them."""
        saved = self._restore.setdefault(unit, [])
        for module in modules:
            stores: list[dict[str, Any]] = [module._parameters, module._buffers]
            for store in stores:
                for name, value in store.items():
                    if value is not None and value.dtype in HALF:
                        saved.append((store, name, value))
                        store[name] = value.detach().float()

    def leave(self, unit: nn.Module) -> None:
        """Restore the weights that ``enter`` cast."""
        for store, name, value in self._restore.pop(unit, []):
            store[name] = value

    def restore(self) -> None:
        """Restore the weights of every module that is still cast."""
        for unit in reversed(list(self._restore)):
            self.leave(unit)


@contextmanager
def in_float32(model: Any) -> Iterator[Float32Pass]:
    """Compute the forward passes of the block in float32; the weights are restored bit for bit.

    Attention kernels that need half precision are replaced by PyTorch's in the block.

    Args:
        model: A causal language model, with or without an adapter.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tiny = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                    num_attention_heads=2, vocab_size=16)
        >>> model = LlamaForCausalLM(tiny).bfloat16()
        >>> with in_float32(model) as state:
        ...     model(input_ids=torch.tensor([[1, 2, 3]])).logits.dtype
        torch.float32
        >>> state.pure, model.dtype
        (True, torch.bfloat16)
    """
    state = Float32Pass(pure=all(p.is_floating_point() for p in model.parameters()))
    handles = []

    def hook(unit: nn.Module, modules: Sequence[nn.Module]) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            state.enter(unit, modules)
            state.pure &= not _has_half((args, kwargs))
            return _widened(args), _widened(kwargs)

        def after(_: nn.Module, __: Any, ___: Any) -> None:
            state.leave(unit)

        handles.append(unit.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(unit.register_forward_hook(after, always_call=True))

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        state.pure &= not _has_half(output)

    blocks = _blocks(model)
    inside = {module for block in blocks for module in block.modules()}
    outside = [module for module in model.modules() if module not in inside]
    for root in dict.fromkeys(
        (model, without_peft(model))
    ):  # PEFT calls the forward of the second one
        hook(root, outside)
    for block in blocks:
        hook(block, list(block.modules()))
    handles += [module.register_forward_hook(watch) for module in model.modules()]
    try:
        with _attention_in_float32(without_peft(model)), _exact_products():
            yield state
    finally:
        for handle in handles:
            handle.remove()
        state.restore()


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost module lists: the layers of the model."""
    blocks: list[nn.Module] = []
    for child in module.children():
        blocks += list(child) if isinstance(child, nn.ModuleList) else _blocks(child)
    return blocks


def _widened(values: Any) -> Any:
    """Cast the tensors of plain containers; caches and other objects are passed on as they are."""
    if isinstance(values, Tensor):
        return values.float() if values.dtype in HALF else values
    if type(values) in (tuple, list):
        return type(values)(_widened(value) for value in values)
    if type(values) is dict:
        return {name: _widened(value) for name, value in values.items()}
    return values


def _has_half(values: Any) -> bool:
    if isinstance(values, Tensor):
        return values.dtype in HALF
    if isinstance(values, Mapping):
        return any(_has_half(value) for value in values.values())
    return isinstance(values, tuple | list) and any(_has_half(value) for value in values)


@contextmanager
def _attention_in_float32(model: Any) -> Iterator[None]:
    """Replace an attention kernel that needs half precision by PyTorch's in the block."""
    own = str(getattr(model.config, "_attn_implementation", None) or "")
    if not any(name in own for name in NEEDS_HALF):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Compute float32 matrix products without TF32 in the block."""
    own = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(own)
