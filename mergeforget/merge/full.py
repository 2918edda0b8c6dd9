"""Full models: adapters folded into their base, or whole checkpoints merged, streamed to files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, NumericError, UsageError, suggest
from mergeforget.merge.blockwise import merge_blocks
from mergeforget.merge.by_module import at_module, depth_of
from mergeforget.merge.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from mergeforget.merge.engine import How, merge_adapters, products
from mergeforget.merge.inputs import check_adapters, modules_to_merge, some
from mergeforget.merge.methods import traits
from mergeforget.merge.ops import Tensor
from mergeforget.merge.request import canonical, check_candidate
from mergeforget.merge.select import SMALL, Source
from mergeforget.merge.select import blocks as row_blocks
from mergeforget.merge.writer import SHARD_BYTES, Block, Job, Rounding, write_model

Array = NDArray[Any]
OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Output:
    """How a full model is written.

    Attributes:
        dtype: ``auto`` keeps that of the base (or first model), tensor by tensor.
        device: that merges blocks, for example ``cuda``; ``cpu`` is numpy.
        max_memory: bytes that tensors in work may take together; None sets no limit.
        durable: see ``writer.write_model``.
    """

    dtype: str = "auto"
    shard_bytes: int = SHARD_BYTES
    threads: int = 0
    device: str = "cpu"
    max_memory: int | None = None
    durable: bool = True

    def stored(self, info: TensorInfo) -> str:
        """The dtype that a tensor is written in."""
        if self.dtype == "auto" or not info.floating:
            return info.dtype
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Written:
    """A full model on the disk.

    Attributes:
        rounding: ``||realised - meant|| / ||meant||`` of the change in the output's dtype; None
            where there is no base to change.
    """

    folder: Path
    candidate: Candidate
    rounding: float | None


def fold_adapters(
    base: Path,
    adapters: Sequence[Adapter],
    candidate: Candidate,
    out: Path,
    output: Output | None = None,
    how: How | None = None,
) -> Written:
    """Merge adapters and add the result to their base: a plain model folder.

    In delta space the merged change is added whole; it is cut to a rank only where the candidate
    names one. In factor space the model is the base with the merged adapter.

    Raises:
        as ``engine.merge_adapters``; InputError where the base lacks a module.
    """
    output, how = output or Output(), how or How()
    candidate = canonical(candidate)
    check_candidate(candidate, len(adapters))
    check_adapters(adapters)
    names = modules_to_merge(adapters, how.modules)
    step = candidate
    if candidate.space == "factors" or candidate.rank or candidate.method == "cat":
        adapters = [merge_adapters(adapters, candidate, how).adapter]
        step = Candidate("linear", weights=(1.0,), space="delta")
    with open_checkpoint(base) as model:
        targets = {_target(model, name, adapters).name: name for name in names}
        depth = depth_of(names)
        jobs = []
        for info in model.tensors.values():
            if info.name in targets:
                module = targets[info.name]
                here = at_module(step, module, depth[module])
                one = _fold_job(model, info, module, adapters, here, output)
            else:
                one = _kept_job(model, info, output)
            jobs.append(one)
        inputs = [_checkpoint_id(model), *map(_adapter_id, adapters)]
        return _write(out, jobs, inputs, model, candidate, output)


def merge_models(
    models: Sequence[Path],
    base: Path | None,
    candidate: Candidate,
    out: Path,
    output: Output | None = None,
) -> Written:
    """Merge whole checkpoints, tensor by tensor.

    Args:
        base: what the models were fine-tuned from: the method then acts on their differences from
            it, and the result is added to it. None lets it act on the weights themselves.

    Raises:
        UsageError: a method that needs a base has none, or weights do not fit.
        InputError: the models hold different tensors or shapes.
        NumericError: NaN or Inf in a model.
    """
    output = output or Output()
    candidate = replace(canonical(candidate), space="delta")
    check_candidate(candidate, len(models))
    _check_base(candidate, base)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(path)) for path in models]
        origin = stack.enter_context(open_checkpoint(base)) if base else None
        first = origin or opened[0]
        check_same_tensors([first, *opened])
        depth = depth_of(first.tensors)
        jobs = [
            _model_job(first, i, opened, origin, at_module(candidate, n, depth[n]), output)
            for n, i in first.tensors.items()
        ]
        inputs = [_checkpoint_id(c) for c in [first, *opened]]
        return _write(out, jobs, inputs, first, candidate, output)


def _fold_job(
    model: Checkpoint,
    info: TensorInfo,
    module: str,
    adapters: Sequence[Adapter],
    candidate: Candidate,
    output: Output,
) -> Job:
    present = [i for i, adapter in enumerate(adapters) if module in adapter.deltas]
    deltas = [_laid(adapters[i].deltas[module], adapters[i]) for i in present]
    weights = np.array([candidate.weights[i] for i in present])
    return _job(model, info, products(deltas), weights, candidate, output, module)


def _model_job(
    first: Checkpoint,
    info: TensorInfo,
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    candidate: Candidate,
    output: Output,
) -> Job:
    theirs = [(model, tensor_of(model, info.name)) for model in models]
    if not info.floating:
        _check_equal(first, info, theirs)
        return _kept_job(first, info, output)

    def rows(part: slice) -> Array:
        stack = np.empty((len(theirs), part.stop - part.start, info.matrix[1]), np.float32)
        origin = base.read(info, part) if base else None
        for place, (model, one) in zip(stack, theirs, strict=True):
            values = _finite(model, one, model.read(one, part))
            np.subtract(values, origin, out=place) if origin is not None else np.copyto(
                place, values
            )
        return stack

    source = Source(len(models), info.matrix, rows)
    weights = np.array(candidate.weights)
    return _job(base, info, source, weights, candidate, output, info.name)


def _job(
    base: Checkpoint | None,
    info: TensorInfo,
    source: Source,
    weights: Array,
    candidate: Candidate,
    output: Output,
    name: str,
) -> Job:
    """Merge a source, add the base where there is one, block by block."""
    source = _on_device(source, output.device)

    def blocks() -> Iterator[Block]:
        for part, (merged,) in merge_blocks(source, weights, [candidate], name):
            change = _numpy(merged)
            if base is None:
                yield Block(change)
            else:
                energy = float(np.einsum("ij,ij->", change, change, dtype=np.float64))
                origin = _finite(base, info, base.read(info, part))
                yield Block(origin + change, energy)

    whole = traits(candidate.method, candidate.arguments).whole
    held = info.numel if whole else min(info.numel, SMALL + info.matrix[1])
    memory = 4 * held * (2 * source.n + 4)
    return Job(info.name, output.stored(info), info.shape, blocks, memory=memory)


def _kept_job(model: Checkpoint, info: TensorInfo, output: Output) -> Job:
    """Carry a tensor over, in the output's dtype."""
    if output.stored(info) == info.dtype:
        return Job(info.name, info.dtype, info.shape, source=(model, info))

    def blocks() -> Iterator[Block]:
        for part in row_blocks(info.matrix):
            yield Block(model.read(info, part))

    return Job(info.name, output.stored(info), info.shape, blocks, memory=16 * SMALL)


def _write(
    out: Path,
    jobs: Sequence[Job],
    inputs: Sequence[Any],
    like: Checkpoint,
    candidate: Candidate,
    output: Output,
) -> Written:
    def facts(rounding: Rounding) -> dict[str, Any]:
        return candidate.to_dict() | {"rounding": rounding.relative, "dtype": output.dtype}

    plan = {"candidate": candidate.to_dict(), "dtype": output.dtype, "inputs": list(inputs)}
    rounding = write_model(
        out,
        jobs,
        plan,
        like=like,
        facts=facts,
        shard_bytes=output.shard_bytes,
        threads=output.threads,
        max_memory=output.max_memory,
        durable=output.durable,
    )
    return Written(out, candidate, rounding.relative)


def tensor_of(model: Checkpoint, name: str) -> TensorInfo:
    """A tensor by name; the output layer of a tied model is its embedding."""
    if name not in model.tensors and name == OUTPUT and model.config.get("tie_word_embeddings"):
        name = EMBEDDING
    return model.tensors[name]


def check_same_tensors(models: Sequence[Checkpoint]) -> None:
    """Raise InputError where models hold other tensors or shapes than the first."""
    first = models[0]
    for other in models[1:]:
        ours, theirs = _names(first), _names(other)
        if ours != theirs:
            raise InputError(
                f"{first.folder} and {other.folder} hold different tensors: "
                f"{some(ours ^ theirs)}. They are models of different architectures, or only one "
                "ties its output layer to its embedding."
            )
        for name in first.tensors:
            here, there = first.tensors[name].shape, tensor_of(other, name).shape
            if here != there:
                raise InputError(
                    f"{name} is {here} in {first.folder} and {there} in {other.folder}. Where it "
                    "is the embedding, bring both to one vocabulary first."
                )


def _names(model: Checkpoint) -> set[str]:
    """Tensor names; a tied output layer that is stored all the same does not count."""
    names = set(model.tensors)
    if model.config.get("tie_word_embeddings") and {OUTPUT, EMBEDDING} <= names:
        _check_equal(model, model.tensors[OUTPUT], [(model, model.tensors[EMBEDDING])])
        names.discard(OUTPUT)
    return names


def _check_equal(
    model: Checkpoint, info: TensorInfo, others: Sequence[tuple[Checkpoint, TensorInfo]]
) -> None:
    """Raise InputError where a tensor that cannot be merged differs between models."""
    for other, theirs in others:
        for part in row_blocks(info.matrix):
            if not np.array_equal(model.read(info, part), other.read(theirs, part)):
                raise InputError(
                    f"{info.name} of {model.folder} differs from {theirs.name} of {other.folder}, "
                    "and it cannot be merged: both must be equal."
                )


def _check_base(candidate: Candidate, base: Path | None) -> None:
    if base is None and traits(candidate.method).base == "delta":
        raise UsageError(
            f"{candidate.method} acts on what changed since a base model; name it with --base."
        )


def _finite(model: Checkpoint, info: TensorInfo, values: Array) -> Array:
    if not np.isfinite(values.sum()) and not np.isfinite(values).all():
        raise NumericError(
            f"{info.name} of {model.folder} holds NaN or Inf. Take an earlier checkpoint of it."
        )
    return values


def _target(model: Checkpoint, module: str, adapters: Sequence[Adapter]) -> TensorInfo:
    """The weight that a module's change is added to."""
    info = model.tensors.get(f"{module}.weight")
    if info is None:
        raise InputError(
            f"{model.folder} has no tensor {module}.weight, which the adapter changes."
            f"{suggest(f'{module}.weight', model.tensors)} Name the adapter's own base."
        )
    delta = next(a.deltas[module] for a in adapters if module in a.deltas)
    if info.matrix != _laid(delta, adapters[0]).shape:
        raise InputError(
            f"{info.name} is {info.shape} in {model.folder}, and the adapter changes a weight of "
            f"{delta.shape}: it was trained on another model."
        )
    return info


def _laid(delta: LowRankDelta, adapter: Adapter) -> LowRankDelta:
    """The change as the base stores its weights: (in, out) in GPT-2's Conv1D."""
    if not adapter.config.get("fan_in_fan_out"):
        return delta
    return LowRankDelta(delta.b.T, delta.a.T, delta.scaling)


def _on_device(source: Source, device: str) -> Source:
    if device == "cpu":
        return source
    import torch

    def moved(read: Callable[..., Array]) -> Callable[..., Tensor]:
        return lambda *given: torch.from_numpy(read(*given)).to(device)

    sample = moved(source.sample) if source.sample else None
    return Source(source.n, source.shape, moved(source.rows), sample)


def _numpy(x: Tensor) -> Array:
    return x if isinstance(x, np.ndarray) else x.cpu().numpy()


def _checkpoint_id(model: Checkpoint) -> list[Any]:
    """What tells whether a checkpoint is still the one that an interrupted merge read."""
    facts = {path: path.stat() for path in {info.path for info in model.tensors.values()}}
    files = [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in facts.items()]
    return [str(model.folder.resolve()), *sorted(files)]


def _adapter_id(adapter: Adapter) -> str:
    digest = hashlib.sha256()
    for module, delta in adapter.deltas.items():
        digest.update(f"{module} {delta.scaling}".encode())
        digest.update(np.ascontiguousarray(delta.a).data)
        digest.update(np.ascontiguousarray(delta.b).data)
    return digest.hexdigest()
