"""Run forward passes with rounded or noisy weights, so that forgetting survives both.

The forward pass uses ``q(W)``, the gradient is that of ``W``: the straight-through estimator. An
adapter is added to the weight before it is rounded, as it is when a merged model is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergeforget.attack.rounding import round_to_nearest
from mergeforget.errors import RecipeError
from mergeforget.train_config import Robust


def perturb(weight: Tensor, spec: Robust, generator: torch.Generator | None = None) -> Tensor:
    """Round a weight, add noise to it, or both; the gradient passes straight through.

    Args:
        weight: (out, in).
        spec: ``bits`` and ``group`` of the rounding; ``noise``, the standard deviation of normal
            noise as a fraction of the root mean square of the weight.
        generator: Source of the noise.

    Returns:
        The perturbed weight, with the shape, dtype and device of ``weight``. Its gradient with
        respect to ``weight`` is 1.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons,
        arXiv:1308.3432 (straight-through estimator).

    Example:
        >>> weight = torch.tensor([[0.9, -7.0]], requires_grad=True)
        >>> rounded = perturb(weight, Robust(bits=4))
        >>> rounded.tolist()  # one scale, 7 / 7 = 1
        [[1.0, -7.0]]
        >>> rounded.sum().backward()
        >>> weight.grad.tolist()
        [[1.0, 1.0]]
    """
    plain = weight.detach()
    moved = plain
    if spec.bits is not None:
        moved = round_to_nearest(moved, spec.bits, spec.group if spec.bits < 8 else None)
    if spec.noise:
        scale = spec.noise * plain.float().square().mean().sqrt()
        noise = torch.randn(plain.shape, generator=generator, device=plain.device)
        moved = moved + (scale * noise).to(moved.dtype)
    return weight + (moved - plain)


@contextmanager
def perturbed(model: Any, spec: Robust, generator: torch.Generator | None = None) -> Iterator[int]:
    """Perturb the weight of every linear layer during the forward passes inside the block.

    Embeddings, the output layer and experts stored as one parameter are not perturbed, and LoRA
    dropout is not applied.

    Yields:
        Number of perturbed layers.

    Raises:
        RecipeError: A layer's weight cannot be read as a plain matrix: a quantised base, or an
            adapter such as DoRA that is not a sum of two matrices.
    """
    from peft.tuners.lora import LoraLayer

    head = model.get_output_embeddings()
    chosen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        in_chosen = any(name.startswith(f"{outer}.") for outer in chosen)
        adapted = isinstance(module, LoraLayer) and isinstance(module, nn.Module)
        plain = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        if not in_chosen and module is not head and (adapted or plain):
            chosen[name] = module
    for name, module in chosen.items():
        _check(name, module)
        module.forward = _Perturbed(module, spec, generator)
    try:
        yield len(chosen)
    finally:
        for module in chosen.values():
            del module.forward


class _Perturbed:
    """Compute the output of one linear layer with its perturbed weight."""

    def __init__(self, layer: Any, spec: Robust, generator: torch.Generator | None) -> None:
        self.layer, self.spec, self.generator = layer, spec, generator

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        base = getattr(self.layer, "base_layer", self.layer)
        weight = base.weight
        for adapter in getattr(self.layer, "active_adapters", []):
            if adapter in self.layer.lora_A and not self.layer.disable_adapters:
                weight = weight + self.layer.get_delta_weight(adapter).to(weight.dtype)
        rows = weight if isinstance(base, nn.Linear) else weight.T  # Conv1D stores (in, out)
        moved = perturb(rows, self.spec, self.generator)
        return F.linear(
            x.to(moved.dtype) if not torch.is_autocast_enabled() else x, moved, base.bias
        )


def _check(name: str, layer: Any) -> None:
    base = getattr(layer, "base_layer", layer)
    weight = getattr(base, "weight", None)
    variant = any(getattr(layer, "lora_variant", None) or {})
    if weight is None or weight.ndim != 2 or not weight.is_floating_point() or variant:
        raise RecipeError(
            f"robust rounds plain weight matrices, and {name} is a {type(base).__name__} under a "
            f"{type(layer).__name__}. Leave out robust, model.quantization, or the LoRA variant."
        )
