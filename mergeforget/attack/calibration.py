"""GPTQ and AWQ: 4-bit quantisation that is calibrated on the inputs of each linear layer.

Both minimise the error of a layer's outputs on calibration text, so they change a model in other
directions than rounding to the nearest value does. They are computed here, without the libraries
that pack such weights, because only the rounded values matter to an attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mergeforget.attack.rounding import RoundedShare, round_to_nearest, rounded, weight_matrices
from mergeforget.attack.tuning import unrelated_rows
from mergeforget.data.schema import Row
from mergeforget.data.tokens import fitting_length

Calibrated = Literal["gptq", "awq"]
CALIBRATED: tuple[Calibrated, ...] = ("gptq", "awq")
TEXTS, TOKENS = 64, 512  # maximum number of calibration texts, and of tokens per text
DAMPING = 0.01  # share of the mean diagonal that is added to the diagonal of the Gram matrix
BLOCK = 128  # columns whose errors are passed on together
GRID = 20  # exponents that AWQ tries
ENTRIES = 2**26  # entries of the Gram matrices kept at once: 256 MB


@dataclass
class InputStatistics:
    """Statistics of the inputs of a linear layer.

    Attributes:
        gram: Sum of the outer products of the inputs, (in, in), float32.
        size: Sum of their absolute values, (in,), float32.
        count: Number of inputs.
    """

    gram: Tensor
    size: Tensor
    count: int = 0

    def add(self, inputs: Tensor) -> None:
        """Add a batch of inputs, (..., in)."""
        flat = inputs.detach().float().reshape(-1, inputs.shape[-1])
        self.gram += flat.T @ flat
        self.size += flat.abs().sum(0)
        self.count += len(flat)


def calibration_texts(tokenizer: Any, retain: Sequence[Row]) -> list[list[int]]:
    """Return token ids of retain rows and of built-in general text, never of forget rows."""
    rows = [*unrelated_rows(), *retain][:TEXTS]
    token_ids = [list(tokenizer(row.document)["input_ids"])[:TOKENS] for row in rows]
    return [ids for ids in token_ids if ids]


@torch.inference_mode()
def observe(
    model: Any, layers: Sequence[nn.Module], texts: Sequence[list[int]]
) -> list[InputStatistics]:
    """Run the model on texts, and return the statistics of the inputs of each layer."""
    statistics = []
    for layer in layers:
        width = _width(layer)
        device = next(layer.parameters()).device
        zeros = torch.zeros(width, width, device=device), torch.zeros(width, device=device)
        statistics.append(InputStatistics(*zeros))
    with _hooked(layers, statistics):
        for ids in texts:
            ids = ids[: fitting_length(model, len(ids))]
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return statistics


@contextmanager
def _hooked(
    layers: Sequence[nn.Module], layer_statistics: Sequence[InputStatistics]
) -> Iterator[None]:
    def hook(statistics: InputStatistics) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: statistics.add(inputs[0])

    handles = [
        layer.register_forward_pre_hook(hook(one))
        for layer, one in zip(layers, layer_statistics, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_parts(layers: Sequence[nn.Module]) -> list[list[int]]:
    """Divide layers, in their order, into parts whose Gram matrices fit into memory together."""
    parts: list[list[int]] = []
    entries = 0
    for i, layer in enumerate(layers):
        entries += _width(layer) ** 2
        if not parts or entries > ENTRIES:
            parts.append([])
            entries = _width(layer) ** 2
        parts[-1].append(i)
    return parts


def _width(layer: nn.Module) -> int:
    """Return the number of inputs of a linear layer, or of GPT-2's ``Conv1D``."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return int(next(layer.parameters()).shape[0])


def gptq(weight: Tensor, inputs: InputStatistics, bits: int, group: int | None) -> Tensor:
    """Quantise weights column by column, and correct the later columns for each error.

    The grid is that of ``round_to_nearest``; the scale of a group is computed from the corrected
    weights when its first column is reached.

    Args:
        weight: (out, in); the rows are output channels.
        inputs: Statistics of the layer's inputs. An input that is always 0 does not affect
            the correction; its weights are rounded to the nearest value (the original sets them to
            0).
        group: Number of adjacent weights in a row that share a scale; None means the whole row.

    Returns:
        Same shape, dtype and device.

    Source: Frantar et al., GPTQ, arXiv:2210.17323, Algorithm 1, with 1 % damping and without the
        reordering of columns.
    """
    top = 2 ** (bits - 1) - 1
    w = weight.double().clone()
    columns = w.shape[1]
    gram = inputs.gram.double() / max(1, inputs.count)
    dead = gram.diagonal() == 0
    damping = DAMPING * float(gram.diagonal().mean())
    gram = gram + torch.diag(torch.full_like(gram[0], damping) + dead.to(gram.dtype))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    factor = torch.linalg.cholesky(inverse, upper=True)  # (in, in)
    size = columns if group is None else min(group, columns)
    quantised, scale = torch.empty_like(w), w[:, :1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.zeros_like(w[:, start:end])
        for i in range(start, end):
            if i % size == 0:
                if i > start:  # columns of the group beyond this block are corrected first
                    w[:, end:] -= errors @ factor[start:end, end:]
                    errors.zero_()
                scale = (w[:, i : i + size].abs().amax(1, keepdim=True) / top).clamp(min=1e-30)
            rounded = scale * (w[:, i : i + 1] / scale).round().clamp(-top, top)
            quantised[:, i : i + 1] = rounded
            error = (w[:, i : i + 1] - rounded) / factor[i, i]
            w[:, i + 1 : end] -= error @ factor[i : i + 1, i + 1 : end]
            errors[:, i - start : i - start + 1] = error
        w[:, end:] -= errors @ factor[start:end, end:]
    return quantised.to(weight.dtype)


def awq(weight: Tensor, inputs: InputStatistics, bits: int, group: int | None) -> Tensor:
    """Scale the inputs with large values up before rounding, and back afterwards.

    The scales are a power of the mean absolute input. Of the ``GRID`` exponents that are tried, the
    one with the smallest squared error of the layer's outputs is kept; 0 is plain rounding.

    Args:
        weight: (out, in); the rows are output channels.
        inputs: Statistics of the layer's inputs.
        group: Number of adjacent weights in a row that share a scale; None means the whole row.

    Returns:
        Same shape, dtype and device.

    Source: Lin et al., AWQ, arXiv:2306.00978, section 3.2. Each matrix has its own scales (the
        original shares those of matrices with the same input), and weights are not clipped.
    """
    wide = weight.float()
    size = inputs.size / max(1, inputs.count)
    best, least = wide, float("inf")
    for step in range(GRID):
        scales = size.clamp(min=1e-4).pow(step / GRID)
        scales = (scales / (scales.max() * scales.min()).sqrt()).clamp(min=1e-4)
        quantised = round_to_nearest(wide * scales, bits, group) / scales
        difference = quantised - wide
        error = float(((difference @ inputs.gram) * difference).sum())
        if error < least:
            best, least = quantised, error
    return best.to(weight.dtype)


METHODS: dict[Calibrated, Callable[[Tensor, InputStatistics, int, int | None], Tensor]] = {
    "gptq": gptq,
    "awq": awq,
}


@contextmanager
def calibrated(
    model: Any, bits: int, group: int | None, kind: Calibrated, texts: Sequence[list[int]]
) -> Iterator[RoundedShare]:
    """Quantise every linear layer with calibration in the block, and restore the weights after it.

    The layers are quantised in their order, and the inputs of a layer are those after the layers of
    earlier parts were quantised. Experts that are stored as one parameter are rounded to the
    nearest value.

    Args:
        texts: Token ids of the calibration texts.

    Yields:
        The share of the weights in matrices that was quantised.
    """
    linear = []
    for matrix in weight_matrices(model):
        layer = model.get_submodule(matrix.name.rpartition(".")[0])
        if matrix.can_round and (isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"):
            linear.append((matrix, layer, matrix.parameter.data))
    layers = [layer for _, layer, _ in linear]
    with rounded(model, bits, group) as done:
        for matrix, _, original in linear:
            matrix.parameter.data = original
        for part in in_parts(layers):
            statistics = observe(model, [layers[i] for i in part], texts)
            for i, inputs in zip(part, statistics, strict=True):
                matrix, _, original = linear[i]
                weight = original.mT if matrix.transposed else original
                new = METHODS[kind](weight, inputs, bits, group)
                matrix.parameter.data = (new.mT if matrix.transposed else new).contiguous()
        yield done
