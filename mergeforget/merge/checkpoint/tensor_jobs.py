"""Jobs for the tensors of a whole model: add an adapter, merge, or copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, suggest
from mergeforget.merge.blockwise import HELD, merge_blocks, merge_whole, on_device
from mergeforget.merge.checkpoint.adapter_deltas import AddedBias, Change, TensorChange, rows_of
from mergeforget.merge.checkpoint.bf16_blocks import HELD as HELD_BYTES
from mergeforget.merge.checkpoint.bf16_blocks import half_blocks
from mergeforget.merge.checkpoint.compatible import (
    EMBEDDINGS,
    OUTPUTS,
    check_equal,
    check_finite_block,
    embedding_of,
    find_tensor,
    is_tied,
    plain_name,
    tensor_of,
)
from mergeforget.merge.checkpoint.jobs import Block, TensorJob, add_change, encoded
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo
from mergeforget.merge.checkpoint.writer import SHARD_BYTES
from mergeforget.merge.engine import method_arguments
from mergeforget.merge.kernels.arrays import as_array
from mergeforget.merge.kernels.dispatch import Workspace
from mergeforget.merge.kernels.low_rank import precise, products
from mergeforget.merge.kernels.thresholds import SMALL, Source
from mergeforget.merge.kernels.thresholds import blocks as row_blocks
from mergeforget.merge.methods import traits

Array = NDArray[Any]

_room, _origin = Workspace(), Workspace()
T = TypeVar("T")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Output:
    """Settings for writing a whole model.

    Attributes:
        dtype: ``auto`` keeps the dtype of the base (or first model), tensor by tensor.
        device: Device that merges blocks, for example ``cuda``; ``cpu`` uses numpy.
        max_memory: Maximum memory of the tensors being merged, in bytes; None sets no limit.
        durable: See ``writer.write_model``.
    """

    dtype: str = "auto"
    shard_bytes: int = SHARD_BYTES
    threads: int = 0
    device: str = "cpu"
    max_memory: int | None = None
    durable: bool = True

    def stored(self, info: TensorInfo) -> str:
        """Return the dtype in which a tensor is written."""
        if self.dtype == "auto" or not info.floating:
            return info.dtype
        return DTYPES[self.dtype]


def fold_job(
    model: Checkpoint, info: TensorInfo, step: TensorChange, output: Output, precision: str
) -> TensorJob:
    """Create the job that merges the deltas of a tensor and adds them to the base."""
    if all(isinstance(one, LowRankDelta) for one in step.changes):
        source, weights, candidate = _low_rank(step, precision)
    else:
        source = _dense(model, info, step.changes, precision)
        weights, candidate = np.array(step.candidate.weights), step.candidate
    source = source._replace(base=lambda part: model.read(info, part).astype(precision))
    return _job(model, info, source, weights, candidate, output, step.name)


def merged_matrix(step: TensorChange, precision: str) -> Array:
    """Return the merged delta of one matrix, (out, in), if all deltas are products of factors."""
    source, weights, candidate = _low_rank(step, precision)
    return as_array(merge_whole(source, weights, [candidate], step.name)[0])


def _low_rank(step: TensorChange, precision: str) -> tuple[Source, Array, Candidate]:
    """Return the deltas to merge, their weights, and the candidate."""
    factors = [precise(d, precision) for d in step.changes if isinstance(d, LowRankDelta)]
    weights, candidate = np.array(step.candidate.weights), step.candidate
    if merge := traits(candidate.method).factors:
        a, b = merge(factors, weights, **method_arguments(candidate))
        once = Candidate("linear", weights=(1.0,), space="delta")
        alone = LowRankDelta(as_array(a), as_array(b), 1.0)
        return products([precise(alone, precision)]), np.ones(1), once
    return products(factors), weights, candidate


def _dense(
    model: Checkpoint, info: TensorInfo, changes: Sequence[Change], precision: str
) -> Source:
    """Return a source of deltas that are not all products of factors, given rows of the base."""

    def rows(part: slice) -> Array:
        origin = check_finite_block(model, info, model.read(info, part)).astype(precision)
        deltas = [rows_of(one, part, origin) for one in changes]
        return np.stack(deltas).astype(precision, copy=False)

    return Source(len(changes), info.matrix, rows)


def model_job(
    info: TensorInfo,
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    candidate: Candidate,
    output: Output,
    precision: str,
) -> TensorJob:
    """Create the job that merges a tensor of whole models, or its differences from a base."""
    stored, n = [(model, tensor_of(model, info.name)) for model in models], len(models)
    first = base or models[0]
    if not info.floating:
        check_equal(first, info, stored)
        return kept_job(first, info, output)
    if info.numel == 0:  # an empty tensor
        return kept_job(first, info, output)

    if output.stored(info) == "BF16" and precision == "float32" and output.device == "cpu":
        compiled = half_blocks(stored, (base, info) if base else None, candidate, info.name)
        if compiled:
            memory = 16 * (n + 2) * min(info.numel, SMALL + info.matrix[1])
            memory += min(2 * (n + 1) * info.numel, HELD_BYTES)
            return TensorJob(info.name, "BF16", info.shape, compiled, memory=memory)

    def rows(part: slice) -> Array:
        stack = _room.take("stack", (n, part.stop - part.start, info.matrix[1]), precision)
        origin = base.read(info, part, _origin) if base else None
        for row, (model, one) in zip(stack, stored, strict=True):
            values = check_finite_block(model, one, model.read(one, part, _room))
            if origin is None:
                np.copyto(row, values)
            else:
                np.subtract(values, origin, out=row)
        return stack

    def origin_rows(part: slice) -> Array:
        assert base is not None
        return base.read(info, part).astype(precision, copy=False)

    source = Source(len(models), info.matrix, rows, base=origin_rows if base else None)
    weights = np.array(candidate.weights)
    return _job(base, info, source, weights, candidate, output, info.name)


def kept_job(model: Checkpoint, info: TensorInfo, output: Output) -> TensorJob:
    """Create the job that copies a tensor, in the output dtype."""
    if output.stored(info) == info.dtype and info.name not in model.added:
        return TensorJob(info.name, info.dtype, info.shape, source=(model, info))

    def blocks() -> Iterator[Block]:
        for part in row_blocks(info.matrix):
            values = model.read(info, part, _room)
            yield Block(encoded(values, output.stored(info), info.name, carried=True))

    return TensorJob(info.name, output.stored(info), info.shape, blocks, memory=16 * SMALL)


def _job(
    base: Checkpoint | None,
    info: TensorInfo,
    source: Source,
    weights: Array,
    candidate: Candidate,
    output: Output,
    name: str,
) -> TensorJob:
    """Merge a source block by block, and add the base, if any."""
    source = on_device(source, output.device)

    def blocks() -> Iterator[Block]:
        for part, (merged,) in _silently(merge_blocks(source, weights, [candidate], name)):
            change = as_array(merged)
            if base is None:
                yield Block(encoded(change, output.stored(info), info.name))
            else:
                origin = check_finite_block(base, info, base.read(info, part, _room))
                yield add_change(origin, change, output.stored(info), info.name)

    whole = traits(candidate.method).whole
    block = info.numel if whole else min(info.numel, SMALL + info.matrix[1])
    memory = 4 * (block * (2 * source.n + 4) + min(source.n * info.numel, HELD))
    return TensorJob(info.name, output.stored(info), info.shape, blocks, memory=memory)


def _silently(blocks: Iterator[T]) -> Iterator[T]:
    """Yield the blocks without numpy's overflow warnings; the written values are checked."""
    while True:
        with np.errstate(over="ignore", invalid="ignore"):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def target(model: Checkpoint, name: str, step: TensorChange) -> TensorInfo:
    """Return the base tensor that a step changes; a tied output layer gets a separate one.

    Raises:
        InputError: The base lacks the tensor, has it in another shape, or stores integers.
    """
    info = find_tensor(model, name)
    if info is None and plain_name(name) in OUTPUTS and is_tied(model):
        embedding = embedding_of(model)
        info = embedding._replace(name=name) if embedding else None
    if info is None and any(isinstance(change, AddedBias) for change in step.changes):
        raise InputError(
            f"{model.folder} has no {name}, to which the adapter's lora_bias could be added. "
            "Evaluate the adapter with PEFT, or train it without lora_bias."
        )
    if info is None:
        raise InputError(
            f"{model.folder} has no tensor {name}, which the adapter changes."
            f"{suggest(name, model.tensors)} Name the base of the adapter."
        )
    if not info.floating:
        raise InputError(
            f"{info.name} of {model.folder} is stored as {info.dtype} (quantised), to which a "
            "delta cannot be added. Name the unquantised base with --base."
        )
    for change in step.changes:
        if info.matrix != change.shape:
            rows, width = change.shape
            if info.name.endswith((*EMBEDDINGS, *OUTPUTS)) and (
                width == info.matrix[1] and rows < info.matrix[0]
            ):
                raise InputError(
                    f"{info.name} has {info.matrix[0]} rows in {model.folder} and {rows} in the "
                    f"adapter, whose base was made smaller. Load the base, call "
                    f"resize_token_embeddings({rows}), save it, and name that folder as the base."
                )
            raise InputError(
                f"{info.name} is {info.shape} in {model.folder}, and the adapter changes a tensor "
                f"of {change.shape}: it was trained on another model."
            )
    return info


_room = Workspace()
