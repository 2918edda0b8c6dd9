"""Whether models can be merged tensor by tensor: same names and shapes, finite numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, NumericError, UsageError
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo
from mergeforget.merge.inputs import some
from mergeforget.merge.kernels.dispatch import loops
from mergeforget.merge.kernels.thresholds import blocks
from mergeforget.merge.methods import traits

Array = NDArray[Any]

OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


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


def tensor_of(model: Checkpoint, name: str) -> TensorInfo:
    """A tensor by name; the output layer of a tied model is its embedding."""
    if name not in model.tensors and name == OUTPUT and model.config.get("tie_word_embeddings"):
        name = EMBEDDING
    return model.tensors[name]


def _names(model: Checkpoint) -> set[str]:
    """Tensor names; a tied output layer that is stored all the same does not count."""
    names = set(model.tensors)
    if model.config.get("tie_word_embeddings") and {OUTPUT, EMBEDDING} <= names:
        check_equal(model, model.tensors[OUTPUT], [(model, model.tensors[EMBEDDING])])
        names.discard(OUTPUT)
    return names


def check_equal(
    model: Checkpoint, info: TensorInfo, others: Sequence[tuple[Checkpoint, TensorInfo]]
) -> None:
    """Raise InputError where a tensor that cannot be merged differs between models."""
    for other, theirs in others:
        for part in blocks(info.matrix):
            if not np.array_equal(model.read(info, part), other.read(theirs, part)):
                raise InputError(
                    f"{info.name} of {model.folder} differs from {theirs.name} of {other.folder}, "
                    "and it cannot be merged: both must be equal."
                )


def check_base(candidate: Candidate, base: Path | None) -> None:
    if base is None and traits(candidate.method).base == "delta":
        raise UsageError(
            f"{candidate.method} acts on what changed since a base model; name it with --base."
        )


def check_finite_block(model: Checkpoint, info: TensorInfo, values: Array) -> Array:
    quick = loops(values)
    if quick:
        sound = quick.all_finite(values.reshape(-1).view(np.uint32))
    else:
        sound = np.isfinite(values.sum()) or np.isfinite(values).all()
    if not sound:
        raise NumericError(
            f"{info.name} of {model.folder} holds NaN or Inf. Take an earlier checkpoint of it."
        )
    return values
