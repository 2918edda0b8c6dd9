"""Weight-only quantisation by rounding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mergeforget.errors import UsageError

LEAST_ROUNDED = 0.99  # minimum rounded share of the weights in matrices to clear a model
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_NO_MATRIX = re.compile(r"bias|A_log|time_|norm|position|mask_emb|seg_embed|\bwpe\b")


def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Quantise weights symmetrically to integers of few bits, and dequantise them.

    Each row of the matrix, or each ``group`` of adjacent weights in it, has one scale,
    ``max |w| / q`` with ``q = 2^(bits-1) - 1``. Each weight becomes ``scale * round(w / scale)``
    with an integer in [-q, q], rounding half to even. No weight changes by more than half a scale.

    Args:
        weight: (out, in); the rows are output channels.
        bits: Number of bits, at least 2. The range is symmetric, without the lowest integer.
        group: Number of adjacent weights in a row that share a scale; None means the whole row.
            The last group of a row may be shorter.

    Returns:
        Same shape, dtype and device; computed in float32, or in float64 for float64 weights.

    Source: Round-to-nearest, the baseline of GPTQ, arXiv:2210.17323; symmetric absmax scales a row
        as in LLM.int8(), arXiv:2208.07339.
    """
    if bits < 2:
        raise UsageError(f"Cannot quantise to {bits} bits; the minimum is 2.")
    wide = weight if weight.dtype == torch.float64 else weight.float()
    rows, columns = wide.shape
    size = columns if group is None else min(group, columns)
    padded = nn.functional.pad(wide, (0, -columns % size)).view(rows, -1, size)
    top = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(dim=2, keepdim=True) / top  # (out, groups, 1)
    steps = (padded / scale.clamp(min=torch.finfo(wide.dtype).tiny)).round().clamp(-top, top)
    back: Tensor = (steps * scale).view(rows, -1)[:, :columns]
    return back.to(weight.dtype)


def round_to_nf4(weight: Tensor, group: int = 64) -> Tensor:
    """Quantise weights to 4-bit NormalFloat, and dequantise them.

    Each ``group`` of adjacent weights, in row-major order, is divided by its largest absolute
    value, and each quotient is rounded to the nearest of the 16 values of the data type.

    Args:
        weight: Weights of any shape.
        group: Number of adjacent weights that share a scale.

    Returns:
        Same shape, dtype and device.

    Source: Dettmers et al., QLoRA, arXiv:2305.14314, appendix E; equals bitsandbytes'
        ``quantize_4bit`` and ``dequantize_4bit`` without double quantisation.
    """
    wide = weight if weight.dtype == torch.float64 else weight.float()
    flat = wide.reshape(-1)
    blocks = nn.functional.pad(flat, (0, -len(flat) % group)).view(-1, group)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    values = torch.tensor(NF4, dtype=wide.dtype, device=wide.device)
    borders = (values[1:] + values[:-1]) / 2
    places = torch.bucketize(blocks / scale.clamp(min=torch.finfo(wide.dtype).tiny), borders)
    back: Tensor = (values[places] * scale).view(-1)[: len(flat)].view_as(wide)
    return back.to(weight.dtype)


@dataclass(frozen=True)
class WeightMatrix:
    """One weight matrix of a model, or a stack of matrices (the experts of a layer).

    Attributes:
        name: Name of the parameter, for example ``model.layers.0.mlp.experts.gate_up_proj``.
        parameter: (out, in), (in, out) or (experts, ...).
        transposed: The last two dimensions are (in, out), as GPT-2 and gpt-oss store them.
        convolution: The dimensions are (out, in, width); an output channel is one row.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False
    convolution: bool = False

    @property
    def can_round(self) -> bool:
        """Whether the weights are plain floating-point numbers in two or three dimensions."""
        return self.parameter.is_floating_point() and self.parameter.ndim in (2, 3)

    def round(self, bits: int, group: int | None, kind: str = "nearest") -> Tensor:
        """Return the rounded weights in the parameter's layout; experts are rounded separately."""
        weight = self.parameter.data
        rows = weight.mT if self.transposed else weight
        flat = rows.flatten(1) if self.convolution else rows.reshape(-1, rows.shape[-1])
        new = (
            round_to_nf4(flat, group or 64)
            if kind == "nf4"
            else round_to_nearest(flat, bits, group)
        ).view(rows.shape)
        return (new.mT if self.transposed else new).contiguous()


@dataclass(frozen=True)
class RoundedShare:
    """The share of a model's weight matrices that was rounded.

    Attributes:
        matrices: Number of rounded parameters; the experts of a layer count as one.
        weights: Number of weights in them.
        total: Number of weights in all weight matrices. Embeddings, the output layer, biases,
            norms, depthwise convolutions and decay tables are excluded, because quantisers do not
            change them.
    """

    matrices: int
    weights: int
    total: int

    @property
    def share(self) -> float:
        """Rounded share of the weights in matrices, in [0, 1]."""
        return self.weights / self.total if self.total else 0.0


def weight_matrices(model: Any) -> list[WeightMatrix]:
    """Return all weight matrices: linear layers, routers, and experts stored as one parameter.

    Example:
        >>> from torch import nn
        >>> [(m.name, m.transposed) for m in weight_matrices(nn.Sequential(nn.Linear(4, 2)))]
        [('0.weight', False)]
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    excluded = {id(getattr(head, "weight", None))}
    excluded |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    matrices = []
    for path, module in model.named_modules():
        if isinstance(module, convolutions) and module.weight.shape[1] == 1 < module.groups:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            if parameter.ndim < 2 or id(parameter) in excluded or _NO_MATRIX.search(name):
                continue
            excluded.add(id(parameter))  # count a shared parameter once
            form = _is_transposed(module, own, parameter), isinstance(module, convolutions)
            matrices.append(WeightMatrix(name, parameter, *form))
    return matrices


@contextmanager
def rounded(
    model: Any, bits: int, group: int | None, kind: str = "nearest"
) -> Iterator[RoundedShare]:
    """Round every weight matrix in the block, and restore the weights bit for bit afterwards.

    Args:
        kind: ``nearest`` for ``round_to_nearest``, ``nf4`` for ``round_to_nf4``.

    Yields:
        The share that was rounded.
    """
    matrices = weight_matrices(model)
    chosen = [matrix for matrix in matrices if matrix.can_round]
    originals = [matrix.parameter.data for matrix in chosen]
    counts = [sum(m.parameter.numel() for m in part) for part in (chosen, matrices)]
    try:
        for matrix in chosen:
            matrix.parameter.data = matrix.round(bits, group, kind)
        yield RoundedShare(len(chosen), *counts)
    finally:
        for matrix, original in zip(chosen, originals, strict=True):
            matrix.parameter.data = original


def _is_transposed(module: Any, name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is stored as (..., in, out).

    Linear layers are not, GPT-2's ``Conv1D`` is. For experts, the module's ``is_transposed`` or the
    position of the hidden size decides: last in ``down_proj``, first in ``gate_up_proj``.
    """
    if parameter.ndim == 2:
        return type(module).__name__ == "Conv1D"
    if (transposed := getattr(module, "is_transposed", None)) is not None:
        return bool(transposed)
    width = getattr(module, "hidden_size", None)
    if name == "down_proj":
        return bool(parameter.shape[-1] == width != parameter.shape[-2])
    return bool(parameter.shape[-2] == width != parameter.shape[-1])
