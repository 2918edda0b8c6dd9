"""Weight-only rounding to few bits, as a model is stored to save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mergeforget.errors import UsageError


def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Weights as they come back from whole numbers of few bits.

    Each row of the matrix, or each ``group`` of neighbours in it, has one scale, ``max |w| / q``
    with ``q = 2^(bits-1) - 1``, and each weight becomes ``scale * round(w / scale)``, a multiple in
    [-q, q]. Halves go to the even number. No weight moves by more than half a scale.

    Args:
        weight: (out, in); the rows are output channels.
        bits: 2 to 8 and more; the symmetric range leaves out the lowest number, as absmax does.
        group: weights of a row that share a scale; None is the whole row. The last group of a row
            may be shorter.

    Returns:
        Same shape, dtype and device; computed in float32, or float64 where the weight is.

    Source: round-to-nearest, the baseline of GPTQ, arXiv:2210.17323; symmetric absmax scales a row
        as in LLM.int8(), arXiv:2208.07339.
    """
    if bits < 2:
        raise UsageError(f"{bits} bits hold no number with a sign and a size; the least is 2.")
    wide = weight if weight.dtype == torch.float64 else weight.float()
    rows, columns = wide.shape
    size = columns if group is None else min(group, columns)
    padded = nn.functional.pad(wide, (0, -columns % size)).view(rows, -1, size)
    top = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(dim=2, keepdim=True) / top  # (out, groups, 1)
    steps = (padded / scale.clamp(min=torch.finfo(wide.dtype).tiny)).round().clamp(-top, top)
    back: Tensor = (steps * scale).view(rows, -1)[:, :columns]
    return back.to(weight.dtype)


@contextmanager
def rounded(model: Any, bits: int, group: int | None) -> Iterator[int]:
    """The model with every linear weight rounded, embeddings and output layer left as they are.

    Yields:
        How many matrices were rounded. Afterwards the weights are what they were, to the last bit.
    """
    head = model.get_output_embeddings()
    modules = [m for m in model.modules() if _is_linear(m) and m is not head]
    originals = [m.weight.data for m in modules]
    try:
        for module in modules:
            turned = not isinstance(module, nn.Linear)  # GPT-2 keeps (in, out)
            weight = module.weight.data.T if turned else module.weight.data
            new = round_to_nearest(weight, bits, group)
            module.weight.data = new.T.contiguous() if turned else new
        yield len(modules)
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.weight.data = original


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
