"""Check that models can be merged: equal tensor names, architecture and vocabulary, no NaN."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.errors import InputError, NumericError, UsageError
from mergeforget.files import read_json, reading
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo
from mergeforget.merge.inputs import first_names
from mergeforget.merge.kernels.dispatch import loops
from mergeforget.merge.kernels.thresholds import blocks
from mergeforget.merge.methods import traits

Array = NDArray[Any]

WRAPPERS = {"model", "language_model", "transformer", "base_model"}  # optional prefixes of names
OUTPUTS = {"lm_head.weight", "embed_out.weight", "output_projection.weight"}
OUTPUT_BIASES = {name.replace("weight", "bias") for name in OUTPUTS}
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
    "backbone.embeddings.weight", "tokens_embed.weight",
)  # fmt: skip
SENTENCEPIECE = "tokenizer.model"
COSMETIC = {  # keys of config.json that do not affect the outputs of a model
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id",
    "pad_token_id", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
    "_attn_implementation_autoset", "attn_implementation", "chat_template",
}  # fmt: skip


def plain_name(name: str) -> str:
    """Return the name of a tensor without the prefixes that depend on how a model was saved.

    >>> plain_name("transformer.h.0.attn.c_attn.weight")
    'h.0.attn.c_attn.weight'
    >>> plain_name("language_model.model.layers.0.mlp.up_proj.weight")
    'layers.0.mlp.up_proj.weight'
    """
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def find_tensor(model: Checkpoint, name: str) -> TensorInfo | None:
    """Return a tensor by its name with any prefix; None if it is missing."""
    if name in model.tensors:
        return model.tensors[name]
    plain = plain_name(name)
    matches = [info for other, info in model.tensors.items() if plain_name(other) == plain]
    return matches[0] if len(matches) == 1 else None


def embedding_of(model: Checkpoint) -> TensorInfo | None:
    """Return the token embedding, or None if it is not recognised."""
    matches = [info for name, info in model.tensors.items() if name.endswith(EMBEDDINGS)]
    return matches[0] if len(matches) == 1 else None


def output_of(model: Checkpoint) -> TensorInfo | None:
    """Return the weight of the output layer, or None if it is not stored."""
    matches = [info for name, info in model.tensors.items() if plain_name(name) in OUTPUTS]
    return matches[0] if len(matches) == 1 else None


def is_tied(model: Checkpoint) -> bool:
    """Return whether the output layer is tied: not stored, or equal to the embedding."""
    embedding, output = embedding_of(model), output_of(model)
    if embedding is None or model.config.get("tie_word_embeddings") is False:
        return False
    if output is None:
        return True
    return output.shape == embedding.shape and all(
        np.array_equal(model.read(output, part), model.read(embedding, part))
        for part in blocks(output.matrix)
    )


def check_same_tensors(models: Sequence[Checkpoint], *, outputs: bool = True) -> None:
    """Raise InputError if the tensor names or shapes of models differ.

    Args:
        outputs: Compare whether the output layers are tied to the embeddings.
    """
    first = models[0]
    for other in models[1:]:
        names, other_names = _names(first), _names(other)
        if not outputs and (is_tied(first) or is_tied(other)):
            names, other_names = names - OUTPUTS, other_names - OUTPUTS
        if names != other_names:
            raise InputError(
                f"{first.folder} and {other.folder} contain different tensors: "
                f"{first_names(names ^ other_names)}. They are models of different architectures, "
                "or only one ties its output layer to its embedding."
            )
        for name in first.tensors:
            shape, other_shape = first.tensors[name].shape, tensor_of(other, name).shape
            if shape != other_shape:
                raise InputError(
                    f"{name} is {shape} in {first.folder} and {other_shape} in {other.folder}. "
                    "Where it is the embedding, bring both to one vocabulary first."
                )


def check_same_kind(models: Sequence[Checkpoint], *, trusted: bool) -> None:
    """Compare architecture, vocabulary and other settings with the first model.

    Different settings, such as ``rope_theta``, and those that only one model has are reported; the
    settings of the first model are written.

    Args:
        trusted: Report a different architecture or vocabulary instead of raising an error.

    Raises:
        InputError: The models have different architectures or vocabularies.
    """
    first = models[0]
    vocabulary = read_vocabulary(first.folder)
    for other in models[1:]:
        faults = []
        ours, theirs = (model.config.get("model_type") for model in (first, other))
        if ours != theirs and None not in (ours, theirs):
            faults.append(f"{first.folder} is a {ours} and {other.folder} a {theirs}")
        other_vocabulary = read_vocabulary(other.folder)
        if vocabulary and other_vocabulary and vocabulary != other_vocabulary:
            token = min(
                t
                for t in vocabulary | other_vocabulary
                if vocabulary.get(t) != other_vocabulary.get(t)
            )
            faults.append(
                f"their vocabularies differ: {token!r} is token {vocabulary.get(token)} in "
                f"{first.folder} and {other_vocabulary.get(token)} in {other.folder}"
            )
        elif not (vocabulary and other_vocabulary) and _other_sentencepiece(
            first.folder, other.folder
        ):
            faults.append(f"{SENTENCEPIECE} differs between {first.folder} and {other.folder}")
        for fault in faults:
            if not trusted:
                raise InputError(
                    f"{fault[0].upper()}{fault[1:]}. Their weights are not comparable, so a "
                    "merge of them is noise. Add --same-base if you know that they are compatible."
                )
            say(f"Warning: {fault}. They are merged because of --same-base.")
        for key in sorted((first.config.keys() | other.config.keys()) - COSMETIC - {"model_type"}):
            value, other_value = first.config.get(key), other.config.get(key)
            in_both = key in first.config and key in other.config
            # null and false are common defaults
            if value != other_value and (in_both or value or other_value):
                ours, theirs = ("not set" if x is None else x for x in (value, other_value))
                say(
                    f"Warning: {key} is {ours} in {first.folder} and {theirs} in {other.folder}. "
                    "The merged model has the first."
                )


def _other_sentencepiece(one: Path, other: Path) -> bool:
    """Return whether two folders have different SentencePiece models, compared byte by byte."""
    files = [folder / SENTENCEPIECE for folder in (one, other)]
    return all(f.is_file() for f in files) and files[0].read_bytes() != files[1].read_bytes()


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Return ids by token from ``tokenizer.json`` or ``vocab.json``; empty without them."""
    for name in ("tokenizer.json", "vocab.json"):
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path)
        if name == "vocab.json":
            return dict(content) if isinstance(content, dict) else {}
        with reading(path):
            vocabulary = _words(content)
        if vocabulary:
            return vocabulary
    return {}


def _words(content: Any) -> dict[str, int]:
    """Return ids by token from the content of a ``tokenizer.json``, with added tokens."""
    inner = content.get("model")
    vocabulary = inner.get("vocab") if isinstance(inner, dict) else None
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {str(pair[0]): i for i, pair in enumerate(vocabulary)}
    added = {one["content"]: one["id"] for one in content.get("added_tokens") or []}
    ids = dict(vocabulary or {}) | added
    if not all(isinstance(index, int) for index in ids.values()):
        raise TypeError("a token id is not an integer")
    return ids


def same_content(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two checkpoints have the same weights, by the first row of each matrix.

    A copy in another floating-point dtype counts as equal. For a quantised copy, only the sizes in
    its config are compared.
    """
    if any("quantization_config" in model.config for model in (one, other)):
        keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
        return all(one.config.get(key) == other.config.get(key) for key in keys)
    if _names(one) != _names(other):
        return False
    for info in one.tensors.values():
        other_info = tensor_of(other, info.name)
        if info.shape != other_info.shape:
            return False
        if not info.numel:
            continue
        rows = one.read(info, slice(0, 1)), other.read(other_info, slice(0, 1))
        rounded = 0 if info.dtype == other_info.dtype else 2**-7  # the precision of bfloat16
        if not np.allclose(*rows, rtol=rounded, atol=0):
            return False
    return True


def tensor_of(model: Checkpoint, name: str) -> TensorInfo:
    """Return a tensor by name; the output layer of a tied model is its embedding."""
    info = find_tensor(model, name)
    if info is None and plain_name(name) in OUTPUTS and is_tied(model):
        info = embedding_of(model)
    if info is None:
        raise InputError(f"{model.folder} has no tensor {name}.")
    return info


def _names(model: Checkpoint) -> set[str]:
    """Return names without prefixes, excluding a stored copy of a tied output layer."""
    names = {plain_name(name) for name in model.tensors}
    return names - OUTPUTS if is_tied(model) else names


def check_equal(
    model: Checkpoint, info: TensorInfo, others: Sequence[tuple[Checkpoint, TensorInfo]]
) -> None:
    """Raise InputError if a tensor that cannot be merged differs between models."""
    for other, other_info in others:
        for part in blocks(info.matrix):
            if not np.array_equal(model.read(info, part), other.read(other_info, part)):
                raise InputError(
                    f"{info.name} of {model.folder} differs from {other_info.name} of "
                    f"{other.folder}. Only floating-point weights can be merged, so that both must "
                    "be equal."
                )


def check_base(candidate: Candidate, base: Path | None) -> None:
    """Raise UsageError if the method acts on changes and no base is given."""
    if base is None and traits(candidate.method).base == "delta":
        raise UsageError(
            f"{candidate.method} merges differences from a base model; name it with --base."
        )


def check_finite_block(model: Checkpoint, info: TensorInfo, values: Array) -> Array:
    """Return a block; raise NumericError if it contains NaN or Inf."""
    quick = loops(values)
    if quick:
        sound = quick.all_finite(values.reshape(-1).view(np.uint32))
    else:
        sound = np.isfinite(values.sum()) or np.isfinite(values).all()
    if not sound:
        raise NumericError(
            f"{info.name} of {model.folder} contains NaN or Inf. Use an earlier checkpoint."
        )
    return values
