"""Weighted sums of bfloat16 models in one compiled pass over the stored bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.candidate import Candidate
from mergeforget.merge.checkpoint.compatible import check_finite_block
from mergeforget.merge.checkpoint.encode import overflow
from mergeforget.merge.checkpoint.jobs import Block
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo
from mergeforget.merge.kernels.dispatch import Room, loops
from mergeforget.merge.kernels.sign_election import scaled
from mergeforget.merge.kernels.thresholds import blocks as row_blocks
from mergeforget.merge.methods import traits

Array = NDArray[Any]

_room = Room()


def half_blocks(
    models: Sequence[tuple[Checkpoint, TensorInfo]],
    base: tuple[Checkpoint, TensorInfo] | None,
    candidate: Candidate,
) -> Callable[[], Iterator[Block]] | None:
    """Return the blocks of a merged tensor, bit-identical to the blocks of the method.

    Args:
        models: The models, and the location of the tensor in each.
        base: Model whose differences to the others are merged and added to it.

    Returns:
        None if the merge is not a weighted sum of bfloat16, or the compiled loops are not loaded.
    """
    given = [*models, base] if base else [*models]
    quick = loops()
    if traits(candidate.method).coefficients is not scaled or not quick:
        return None
    if any(info.dtype != "BF16" for _, info in given):
        return None
    factors = scaled(None, np.array(candidate.weights), **candidate.arguments).astype(np.float32)
    first = given[-1][1]

    def blocks() -> Iterator[Block]:
        for part in row_blocks(first.matrix):
            yield _block(given, part, base is not None, factors, quick)

    return blocks


def _block(
    given: Sequence[tuple[Checkpoint, TensorInfo]],
    part: slice,
    with_base: bool,
    factors: Array,
    quick: ModuleType,
) -> Block:
    rows, width = part.stop - part.start, given[0][1].matrix[1]
    raws = _room.take("raws", (len(given), rows * width), np.uint16)
    for (model, info), place in zip(given, raws, strict=True):
        model.raw(info, part.start * width, part.stop * width, place.view(np.uint8))
    out = _room.take("out", (rows, width), np.uint16)
    chunks = _room.take("chunks", (4, quick.CHUNK), np.uint32)
    n = len(factors)
    origin = raws[n] if with_base else raws[0, :0]
    finite, energy, error = quick.half_weighted_sum(
        raws[:n], origin, factors, chunks, out.reshape(-1)
    )
    if not finite:  # find the model with the value
        for model, info in given:
            check_finite_block(model, info, model.read(info, part))
    if not quick.halves_finite(out.reshape(-1)):
        raise overflow(given[0][1].name, "BF16")
    return Block(out, energy, error)
