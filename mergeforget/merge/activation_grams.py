"""Measure the statistics that merge methods need by running the model on rows.

``grams`` are the means of ``h h^T`` over the inputs h of a layer (``regmean``, ``regmean_pp``),
``importance`` and ``contrast`` gradients of the loss by each weight (``fisher``, ``perta``), and
``shares`` coefficients learned by minimising an entropy (``adamerging``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.console import progress
from mergeforget.errors import UsageError
from mergeforget.merge.inputs import check_layers_only
from mergeforget.merge.methods import MERGE_METHODS, traits
from mergeforget.merge.request import LAYER, at_module, canonical, check_grams, depth_of

if TYPE_CHECKING:
    from torch import nn

    from mergeforget.data.schema import Row
    from mergeforget.data.templating import PromptTemplate, TemplateSpec

Array = NDArray[Any]
Grams = Mapping[str, Sequence[Array]]
MAX_LENGTH = 1024  # maximum number of tokens per row


def grams_of(
    base: str,
    adapters: Sequence[Adapter],
    files: Sequence[Path],
    candidate: Candidate,
    spec: TemplateSpec | None = None,
) -> Grams:
    """Return the statistics that the method needs, by module, one array per adapter.

    Args:
        base: Name or folder of the model that the adapters were trained on.
        files: Files of rows, one per adapter, or one for all.
        spec: How rows are rendered, as in the training of the adapters; None uses the chat template
            if the tokenizer has one.

    Raises:
        UsageError: The number of files does not match, or the method uses no data.
        InputError: A file or the model cannot be read, or an adapter does not match the model.
    """
    from mergeforget.data.readers import read_rows
    from mergeforget.data.templating import PromptTemplate, template_of
    from mergeforget.merge.apply import applied
    from mergeforget.models import load_model

    check_grams(candidate, {})
    check_layers_only(adapters, candidate.method)
    candidate = canonical(candidate)
    takes = MERGE_METHODS.get(candidate.method).parameters
    _check_data(candidate.method, takes, adapters, files)
    loaded = load_model(base)
    model, tokenizer = loaded.model, loaded.tokenizer
    template = template_of(tokenizer, spec) if spec else PromptTemplate.resolve(tokenizer)
    if "contrast" in takes:
        squared = candidate.arguments.get("estimate", takes["estimate"].default) == "fisher"
        statistics = [
            importances(model, tokenizer, read_rows(path), adapters, template, squared=squared)
            for path in files
        ]
        return {module: [one[module] for one in statistics] for module in statistics[0]}
    row_sets = [read_rows(path) for path in files] * (len(adapters) // len(files))
    if "shares" in takes:
        from mergeforget.merge.adaptive_weights import learn_shares

        learned = learn_shares(
            model, tokenizer, adapters, row_sets[: len(files)], candidate, template
        )
        return {
            name: [x for x, a in zip(shares, adapters, strict=True) if name in a.deltas]
            for name, shares in learned.shares.items()
        }
    if traits(candidate.method).layerwise:
        return layerwise_grams(model, tokenizer, row_sets, adapters, candidate, template)
    per_file: list[dict[str, Array]] = []
    for adapter, rows in zip(adapters, row_sets, strict=True):
        with applied(model, adapter):
            if "importance" in takes:
                measured = importances(model, tokenizer, rows, [adapter], template)
                per_file.append(measured)
                continue
            per_file.append(input_grams(model, tokenizer, rows, adapter, template))
    return {m: [one[m] for one in per_file if m in one] for m in set().union(*per_file)}


def _check_data(
    method: str, takes: Mapping[str, Any], adapters: Sequence[Adapter], files: Sequence[Path]
) -> None:
    """Raise UsageError if a method cannot use the adapters or the number of files."""
    if "grams" in takes and any(adapter.embeddings for adapter in adapters):
        raise UsageError(
            f"{method} needs the inputs of linear layers, but an adapter has LoRA on an embedding, "
            "whose inputs are token ids. Use fisher, or a method without data."
        )
    if "contrast" in takes and len(files) != 2:
        raise UsageError(f"{method} needs --data FORGET --data RETAIN, two files.")
    if "contrast" not in takes and len(files) not in (1, len(adapters)):
        raise UsageError(
            f"There are {len(adapters)} adapters and {len(files)} files of data. Give --data once "
            "for each adapter, in their order, or once for all."
        )


def layerwise_grams(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Sequence[Row]],
    adapters: Sequence[Adapter],
    candidate: Candidate,
    template: PromptTemplate | None = None,
) -> Grams:
    """Return the ``input_grams`` of each layer after merged layers, see ``regmean_pp``.

    Args:
        rows: The data of each adapter.
        candidate: How a layer is merged when its statistics are known.
    """
    from mergeforget.merge.apply import applied

    modules = sorted(set().union(*(adapter.deltas for adapter in adapters)))
    layers: dict[int, list[str]] = {}
    for name in modules:
        layer_match = LAYER.search(name)
        layers.setdefault(int(layer_match[1]) if layer_match else len(modules), []).append(name)
    depth, grams = depth_of(modules), dict[str, Sequence[Array]]()
    merged: dict[str, LowRankDelta] = {}
    for number in sorted(layers):
        names, measured = layers[number], []
        for adapter, data in zip(adapters, rows, strict=True):
            layer_deltas = {name: adapter.deltas[name] for name in names if name in adapter.deltas}
            mixed = replace(
                adapter, deltas=merged | layer_deltas, extras={}, embeddings=frozenset()
            )
            with applied(model, mixed):
                measured.append(
                    input_grams(
                        model, tokenizer, data, replace(mixed, deltas=layer_deltas), template
                    )
                )
        for name in names:
            grams[name] = [one[name] for one in measured if name in one]
            owners = [i for i, adapter in enumerate(adapters) if name in adapter.deltas]
            settings = at_module(candidate, name, depth[name])
            moved = mapped([adapters[i].deltas[name] for i in owners], grams[name], settings)
            a = [
                d.a * (settings.weights[i] * d.scaling) for i, d in zip(owners, moved, strict=True)
            ]
            b = [d.b for d in moved]
            merged[name] = LowRankDelta(np.concatenate(a), np.concatenate(b, axis=1), 1.0)
    return grams


def input_grams(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    adapter: Adapter,
    template: PromptTemplate | None = None,
) -> dict[str, Array]:
    """Return the mean of ``h h^T`` over all tokens, (in, in) float64, by module of the adapter.

    Modules with the same input tensor, such as the projections to queries, keys and values, share
    one matrix.
    """
    import torch

    from mergeforget.data.templating import RAW
    from mergeforget.data.tokens import encode_rows, fitting_length

    longest = fitting_length(model, MAX_LENGTH)
    encoded = encode_rows(tokenizer, rows, max_length=longest, template=template or RAW)
    tokens, device = sum(len(one) for one in encoded), next(model.parameters()).device
    with _watched(model, list(adapter.deltas)) as sums, torch.no_grad():
        with progress(f"Reading the inputs of {adapter.name}", len(encoded)) as bar:
            for one in encoded:
                model(input_ids=torch.tensor([one.ids], device=device), use_cache=False)
                bar.advance()
    means = {id(total): (total / tokens).cpu().numpy() for total in sums.values()}
    return {name: means[id(total)] for name, total in sums.items()}


def importances(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    adapters: Sequence[Adapter],
    template: PromptTemplate | None = None,
    *,
    squared: bool = True,
) -> dict[str, Array]:
    """Return the importance of each weight of the adapters' modules, (out, in) float32.

    It is the mean over rows of the squared gradient of the answer loss (the diagonal of the
    empirical Fisher information), or with ``squared=False`` the magnitude of the mean gradient.
    """
    import torch

    from mergeforget.merge.apply import is_transposed
    from mergeforget.merge.purpose import encode_answers, mean_answer_loss

    examples = encode_answers(model, tokenizer, rows, template)
    names = sorted(set().union(*(adapter.deltas for adapter in adapters)))
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    frozen = {id(p): p.requires_grad for p in model.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    try:
        with progress("Measuring the importance of weights", len(examples)) as bar:
            for example in examples:
                loss = mean_answer_loss(model, example)
                for name, grad in zip(
                    names, torch.autograd.grad(loss, list(weights.values())), strict=True
                ):
                    sums[name] += grad * grad if squared else grad
                bar.advance()
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(frozen.get(id(parameter), False))
    means = {name: (x / len(examples)).abs().float().cpu().numpy() for name, x in sums.items()}
    return {
        name: x.T if is_transposed(model.get_submodule(name)) else x for name, x in means.items()
    }


@contextmanager
def _watched(model: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Add up ``h^T h`` of the modules' inputs inside the block."""
    import torch

    sums: dict[str, Any] = {}
    last: list[Any] = [None, ""]

    def add_inputs(name: str, given: Any) -> None:
        if given is last[0] and sums.get(name, sums[last[1]]) is sums[last[1]]:
            sums[name] = sums[last[1]]
            return
        flat = given.reshape(-1, given.shape[-1]).to(torch.float64)
        if name not in sums:
            sums[name] = flat.new_zeros(flat.shape[1], flat.shape[1])
        sums[name] += flat.T @ flat
        last[:] = given, name

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: add_inputs(name, given[0])
        )
        for name in modules
    ]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def supplied(candidate: Candidate, found: Sequence[Array]) -> dict[str, Array]:
    """Return the measured importance of one module as keyword arguments of the method.

    A method with a ``contrast`` gets the importance of the first file and of the second.
    """
    stacked = np.stack(list(found))
    if "contrast" in MERGE_METHODS.get(candidate.method).parameters:
        return {"importance": stacked[:1], "contrast": stacked[1:2]}
    return {"importance": stacked}


def mapped(
    deltas: Sequence[LowRankDelta], grams: Sequence[Array], candidate: Candidate
) -> list[LowRankDelta]:
    """Return the low-rank deltas ``x_i M_i`` of one module, whose sum is the merge."""
    maps = traits(candidate.method).maps
    assert maps is not None
    matrices = maps(np.stack(list(grams)), **candidate.arguments)
    return [
        replace(delta, a=(delta.a.astype(np.float64) @ m).astype(delta.a.dtype))
        for delta, m in zip(deltas, matrices, strict=True)
    ]


def as_sum(
    adapters: Sequence[Adapter], candidate: Candidate, grams: Grams
) -> tuple[list[Adapter], Candidate]:
    """Return adapters with mapped or scaled deltas, and the candidate that adds them up.

    Raises:
        UsageError: An adapter trained more than factors, for which no statistics exist.
    """
    known = traits(candidate.method)
    if known.maps is None and known.coefficients is None:
        raise UsageError(
            f"{candidate.method} writes only adapters: merge to an adapter with --rank, then merge "
            "it with `mergeforget merge --adapter OUT --full`."
        )
    owners: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        if adapter.extras:
            raise UsageError(
                f"{candidate.method} merges only factors, but {adapter.name!r} changes more than "
                "them. Choose a method that uses no data, such as linear or ties."
            )
        for module in adapter.deltas:
            owners.setdefault(module, []).append(i)
    changed = [dict(adapter.deltas) for adapter in adapters]
    depth = depth_of(owners)
    for module, present in owners.items():
        settings = at_module(candidate, module, depth[module])
        deltas = [adapters[i].deltas[module] for i in present]
        if known.maps:
            deltas = mapped(deltas, grams[module], settings)
        else:
            shares = [float(x) for x in grams[module]]
            deltas = [
                replace(d, scaling=d.scaling * x) for d, x in zip(deltas, shares, strict=True)
            ]
        for i, delta in zip(present, deltas, strict=True):
            changed[i][module] = delta
    weights = {key: value for key, value in candidate.by_module.items() if key == "weights"}
    plain = replace(candidate, method="linear", arguments={}, by_module=weights)
    moved = [replace(a, deltas=deltas) for a, deltas in zip(adapters, changed, strict=True)]
    return moved, plain
