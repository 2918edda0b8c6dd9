"""One forward pass with the LoRA adapters of two models that share the weights of their base."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mergeforget.train.packing_check import rows_leak


def sharing_weights(model: Any) -> Any:
    """Return a copy of a model whose parameters and buffers are those of the model itself."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def why_apart(host: Any, guest: Any) -> str:
    """Return why two models cannot share passes; empty if they can.

    Args:
        host: A PEFT model.
        guest: Another one, on the same base.
    """
    name = type(host.get_base_model()).__name__
    if rows_leak(host):
        return f"{name} mixes packed rows"
    settings = vars(host.config.get_text_config())
    dropping = [k for k, v in settings.items() if "drop" in k and isinstance(v, float) and v > 0]
    if dropping:
        return f"{name} has dropout of its own ({', '.join(dropping)})"
    adapted = _adapted(host).keys() | _adapted(guest).keys()
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        host.get_submodule(n).register_forward_pre_hook(
            lambda _, inputs, n=n: shapes.update({n: tuple(inputs[0].shape[:2])})
        )
        for n in adapted
    ]
    device = next(host.parameters()).device
    ids = torch.zeros(1, 3, dtype=torch.long, device=device)
    kept = torch.tensor([1], device=device)
    was_training = host.training
    host.eval()
    try:
        with torch.no_grad():
            host(input_ids=ids, use_cache=False, logits_to_keep=kept)
    finally:
        host.train(was_training)
        for hook in hooks:
            hook.remove()
    unfit = sorted(n for n in adapted if shapes.get(n) != (1, 3))
    if unfit:
        return f"{len(unfit)} adapted modules do not see every token, for example {unfit[0]}"
    return ""


def _adapted(model: Any) -> dict[str, LoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


@contextmanager
def joined_adapters(
    host: Any,
    guest: Any,
    cut: int,
    random_of: Callable[[str], Any],
    stages: tuple[str, str],
) -> Iterator[None]:
    """Apply the host's adapter to the first ``cut`` tokens of a pass, and the guest's to the rest.

    Args:
        host: The PEFT model that runs the pass.
        random_of: Returns a context manager that draws from the generators of a stage.
        stages: Stages of host and guest.
    """
    adapters = _adapted(host), _adapted(guest)
    with ExitStack() as stack:
        for name in adapters[0].keys() | adapters[1].keys():
            module = host.get_submodule(name)
            layers = [own.get(name) for own in adapters]
            parts = list(zip(stages, layers, (slice(0, cut), slice(cut, None)), strict=True))
            stack.enter_context(_forward_by(module, _split_forward(module, parts, random_of)))
        yield


def _split_forward(
    module: nn.Module,
    parts: list[tuple[str, LoraLayer | None, slice]],
    random_of: Callable[[str], Any],
) -> Callable[[Tensor], Tensor]:
    """Return a forward of a module that adds to each part of the tokens the output of its LoRA."""
    base: nn.Module = module.base_layer if isinstance(module, LoraLayer) else module
    base_forward = base.forward

    def forward(x: Tensor) -> Tensor:
        whole = base_forward(x)  # (1, tokens, features)
        outputs = []
        for stage, layer, part in parts:
            part_output = whole[:, part]
            if layer is not None:
                own_forward: Any = type(layer).forward  # type: ignore[attr-defined]
                with (
                    random_of(stage),
                    _forward_by(layer.base_layer, lambda *_, part_output=part_output: part_output),
                ):
                    part_output = own_forward(layer, x[:, part])
            outputs.append(part_output)
        return torch.cat(outputs, 1)

    return forward


@contextmanager
def _forward_by(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the forward of a module inside the block."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
