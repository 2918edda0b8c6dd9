"""Write whole models: merge adapters into their base, or merge checkpoints, streamed to files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget import __version__
from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.activation_grams import as_sum
from mergeforget.merge.blockwise import check_device
from mergeforget.merge.checkpoint.adapter_deltas import (
    ReplacedTensor,
    TensorChange,
    changes_of,
    check_products,
    products_only,
    with_new_tokens,
    without_copies,
)
from mergeforget.merge.checkpoint.compatible import (
    check_base,
    check_same_kind,
    check_same_tensors,
    embedding_of,
    is_tied,
    output_of,
    read_vocabulary,
)
from mergeforget.merge.checkpoint.jobs import Rounding, TensorJob
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint
from mergeforget.merge.checkpoint.saved_names import stored_steps
from mergeforget.merge.checkpoint.tensor_jobs import (
    Output,
    fold_job,
    kept_job,
    merged_matrix,
    model_job,
    target,
)
from mergeforget.merge.checkpoint.writer import write_model
from mergeforget.merge.engine import MergeSettings, merge_adapters
from mergeforget.merge.inputs import check_adapters, check_not_an_input, shared, shared_tokenizer
from mergeforget.merge.kernels import dispatch
from mergeforget.merge.request import (
    at_module,
    canonical,
    check_candidate,
    check_filters,
    check_grams,
    depth_of,
    looks_at_data,
)
from mergeforget.model_adapters import template_with
from mergeforget.model_files import has_tokenizer, stored_template

OUTPUT_OF = {  # output layers not named lm_head
    "gpt_neox.embed_in.weight": "embed_out.weight",
    "biogpt.embed_tokens.weight": "output_projection.weight",
}
ENCODER_EMBEDDING = "embeddings.word_embeddings.weight"
MASKED_HEADS = ("predictions.", "lm_head.", "generator_predictions.", "vocab_transform.")


@dataclass(frozen=True)
class Written:
    """A whole model that was written.

    Attributes:
        candidate: How it was merged; None where mergekit ran a configuration.
        rounding: ``||realised - meant|| / ||meant||`` of the change in the output dtype; None
            without a base.
    """

    folder: Path
    candidate: Candidate | None
    rounding: float | None


def fold_adapters(
    base: Path,
    adapters: Sequence[Adapter],
    candidate: Candidate,
    out: Path,
    output: Output | None = None,
    how: MergeSettings | None = None,
) -> Written:
    """Merge adapters and add the result to their base: a plain model folder.

    In delta space, the full merged delta is added; it is truncated only if the candidate
    has a rank. In factor space, the merged adapter is added. Other changes
    of the adapters (whole modules, biases) are merged by the same method. The chat template that
    was saved with the adapters replaces that of the base; so does their tokenizer, if they were
    trained with further tokens.

    Raises:
        UsageError, InputError, NumericError: As in ``engine.merge_adapters``.
        InputError: The base lacks a module, or is ``out``.
    """
    check_not_an_input(out, [base])
    output, how = output or Output(), how or MergeSettings()
    candidate = canonical(candidate)
    check_candidate(candidate, len(adapters))
    check_device(output.device)
    check_grams(candidate, how.grams)
    check_adapters(adapters, with_base=True, same_base=how.same_base)
    with open_checkpoint(base) as model:
        model = with_new_tokens(model, adapters)
        adapters = [without_copies(adapter, model) for adapter in adapters]
        if how.grams is not None:
            adapters, plain = as_sum(adapters, candidate, how.grams)
            steps = _steps(adapters, plain, replace(how, grams=None), model)
        else:
            steps = _steps(adapters, candidate, how, model)
        wrapped = sorted({p for a in adapters for p in a.config.get("target_parameters") or []})
        merge = partial(merged_matrix, precision=how.precision)
        steps = stored_steps(steps, model, wrapped, merge)
        targets = {name: target(model, name, step) for name, step in steps.items()}
        by_tensor = {targets[name].name: step for name, step in steps.items()}
        dispatch.expect(sum(info.numel for info in targets.values()))
        model, tensors = _untied(model, by_tensor)
        jobs = [
            fold_job(model, info, by_tensor[info.name], output, how.precision)
            if info.name in by_tensor
            else kept_job(model, info, output)
            for info in tensors
        ]
        settings = [how.precision, how.modules, how.svd]
        inputs = [_checkpoint_id(model), *map(_adapter_id, adapters), *settings]
        own = _tokenizer_of(adapters) if model.added else None
        template = None if own else template_with(base, shared_tokenizer(adapters))
        return _write(out, jobs, inputs, model, candidate, output, how.precision, template, own)


def _tokenizer_of(adapters: Sequence[Adapter]) -> Path | None:
    """Return the folder of the tokenizer with the most tokens, which has those that were added.

    None, with a warning, if no adapter was saved with its tokenizer.
    """
    folders = [a.tokenizer for a in adapters if a.tokenizer and has_tokenizer(a.tokenizer)]
    if not folders:
        say(
            "Warning: the written model has rows for new tokens, but the tokenizer of the base, "
            "since no adapter was saved with its own. Copy the right tokenizer into its folder."
        )
        return None
    own = max(folders, key=lambda folder: len(read_vocabulary(folder)))
    different = [other for other in folders if stored_template(other) != stored_template(own)]
    if different:
        say(
            f"Warning: the chat templates of {own} and {different[0]} differ. The result has the "
            "first."
        )
    return own


def _steps(
    adapters: Sequence[Adapter], candidate: Candidate, how: MergeSettings, model: Checkpoint
) -> dict[str, TensorChange]:
    """Return how each tensor of the base, ``model``, is changed."""
    layout = model.config, model.folder
    changes_by_adapter = [changes_of(adapter, *layout) for adapter in adapters]
    names = shared(
        [(a.name, g) for a, g in zip(adapters, changes_by_adapter, strict=True)], how.modules
    )
    modules = {f"{module}.weight": module for a in adapters for module in a.deltas}
    depth = depth_of(names)
    check_filters(candidate, [modules.get(name, name) for name in names])
    steps = {}
    for name in names:
        known = modules.get(name, name)
        present = [i for i, changes in enumerate(changes_by_adapter) if name in changes]
        settings = at_module(replace(candidate, space="delta"), known, depth[name])
        settings = replace(settings, weights=tuple(settings.weights[i] for i in present))
        steps[name] = TensorChange(known, [changes_by_adapter[i][name] for i in present], settings)
    if candidate.space == "factors" or candidate.rank or candidate.method == "cat":
        merged = merge_adapters(
            [products_only(adapter) for adapter in adapters], candidate, how
        ).adapter
        once = Candidate("linear", weights=(1.0,), space="delta")
        for name, change in changes_of(merged, *layout).items():
            check_products(name, steps[name])
            steps[name] = TensorChange(modules[name], [change], once)
    return steps


def _untied(
    model: Checkpoint, steps: Mapping[str, TensorChange]
) -> tuple[Checkpoint, list[TensorInfo]]:
    """Return the tensors to write, and the model with the config to write.

    The output layer of a tied model is its embedding. PEFT changes one without the other, so
    the result has a separate output layer, unless both are replaced by equal tensors.
    """
    tensors = list(model.tensors.values())
    embedding, output = embedding_of(model), output_of(model)
    added = [name for name in steps if name not in model.tensors]
    if embedding is None or not is_tied(model):
        return model, tensors
    one, other = steps.get(embedding.name), steps.get(output.name if output else "".join(added))
    if one is None and other is None:
        return model, tensors
    if one is not None and other is not None and _equal(one, other):
        return model, tensors
    if output is None and not added and embedding.name.endswith(ENCODER_EMBEDDING):
        if any(head in name for name in model.tensors for head in MASKED_HEADS):
            raise InputError(
                f"{model.folder} ties its output layer, with a bias, to {embedding.name}, which "
                "the adapter changes alone. Such a model cannot be written without the tie. "
                "Leave --full out, and load the merged adapter with PEFT."
            )
        return model, tensors  # an encoder without an output layer
    if output is None:
        name = added[0] if added else OUTPUT_OF.get(embedding.name, "lm_head.weight")
        tensors.append(embedding._replace(name=name))
    return replace(model, config=model.config | {"tie_word_embeddings": False}), tensors


def _equal(one: TensorChange, other: TensorChange) -> bool:
    """Return whether two steps replace their tensors by the same values."""
    return len(one.changes) == len(other.changes) and all(
        isinstance(a, ReplacedTensor)
        and isinstance(b, ReplacedTensor)
        and np.array_equal(a.value, b.value)
        for a, b in zip(one.changes, other.changes, strict=True)
    )


def merge_models(
    models: Sequence[Path],
    base: Path | None,
    candidate: Candidate,
    out: Path,
    output: Output | None = None,
    precision: str = "float32",
    *,
    same_base: bool = False,
    strict: bool = True,
) -> Written:
    """Merge whole checkpoints, tensor by tensor.

    Args:
        base: Model that the others were fine-tuned from. The method merges the differences from
            it, and the result is added to it. None merges the weights themselves.
        precision: Precision of the computation, ``float32`` or ``float64``.
        same_base: Merge even if architectures or vocabularies differ.
        strict: Refuse settings by module that match no tensor; mergekit ignores them.

    Raises:
        UsageError: The method needs a base, or the number of weights is wrong.
        InputError: The models have different tensors or shapes, or ``out`` is one of them.
        NumericError: A model contains NaN or Inf.
    """
    check_not_an_input(out, [*models, *([base] if base else [])])
    output = output or Output()
    candidate = replace(canonical(candidate), space="delta")
    if candidate.rank is not None:
        raise UsageError("Whole models are merged at full rank: leave --rank out.")
    check_candidate(candidate, len(models))
    check_device(output.device)
    check_base(candidate, base)
    if looks_at_data(candidate):
        raise UsageError(
            f"{candidate.method} needs the inputs of the layers, which are measured only for "
            "adapters: use `mergeforget merge` with --adapter, --data and --full."
        )
    with ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(path)) for path in models]
        origin = stack.enter_context(open_checkpoint(base)) if base else None
        first = origin or opened[0]
        check_same_tensors([first, *opened])
        check_same_kind([first, *opened], trusted=same_base)
        dispatch.expect(sum(info.numel for info in first.tensors.values()) * len(opened))
        depth = depth_of(first.tensors)
        if strict:
            check_filters(candidate, first.tensors)
        jobs = [
            model_job(i, opened, origin, at_module(candidate, n, depth[n]), output, precision)
            for n, i in first.tensors.items()
        ]
        inputs = [*[_checkpoint_id(c) for c in [first, *opened]], precision]
        return _write(out, jobs, inputs, first, candidate, output, precision)


def _write(
    out: Path,
    jobs: Sequence[TensorJob],
    inputs: Sequence[Any],
    like: Checkpoint,
    candidate: Candidate,
    output: Output,
    precision: str,
    template: str | None = None,
    tokenizer: Path | None = None,
) -> Written:
    def facts(rounding: Rounding) -> dict[str, Any]:
        used = {"dtype": output.dtype, "device": output.device, "precision": precision}
        return candidate.to_dict() | {"rounding": rounding.relative} | used

    plan = {
        "candidate": candidate.to_dict(),
        "dtype": output.dtype,
        "device": output.device,
        "inputs": list(inputs),
        "version": __version__,
    }
    rounding = write_model(
        out,
        jobs,
        plan,
        like=like,
        facts=facts,
        template=template,
        tokenizer=tokenizer,
        shard_bytes=output.shard_bytes,
        threads=output.threads,
        max_memory=output.max_memory,
        durable=output.durable,
    )
    return Written(out, candidate, rounding.relative)


def _checkpoint_id(model: Checkpoint) -> list[Any]:
    """Return what identifies the files of a checkpoint when an interrupted merge resumes."""
    facts = {path: path.stat() for path in {info.path for info in model.tensors.values()}}
    # copies may keep the time of modification, so the time of the change to the file counts too
    files = [[path.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for path, s in facts.items()]
    return [str(model.folder.resolve()), *sorted(files)]


def _adapter_id(adapter: Adapter) -> str:
    digest = hashlib.sha256()
    for module, delta in adapter.deltas.items():
        digest.update(f"{module} {delta.scaling}".encode())
        digest.update(np.ascontiguousarray(delta.a).data)
        digest.update(np.ascontiguousarray(delta.b).data)
    for name, value in adapter.extras.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
