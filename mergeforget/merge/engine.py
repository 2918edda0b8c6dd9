"""Apply a merge method to adapters, module by module, in factor or delta space.

On a CPU, everything is computed with numpy: neither torch nor the base model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta, write_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import NumericError, UsageError
from mergeforget.merge.activation_grams import Grams, mapped, supplied
from mergeforget.merge.blockwise import check_device, in_memory, merge_whole, on_device
from mergeforget.merge.inputs import (
    Modules,
    check_adapters,
    check_finite,
    check_free,
    merged_config,
    modules_to_merge,
    shared_tokenizer,
)
from mergeforget.merge.kernels import dispatch
from mergeforget.merge.kernels.arrays import as_array, like
from mergeforget.merge.kernels.dispatch import map_in_threads
from mergeforget.merge.kernels.low_rank import (
    cross_terms,
    gram,
    precise,
    products,
    squared_norm,
    stacked_sum,
)
from mergeforget.merge.kernels.truncated_svd import Svd, TruncatedDelta, cut_dense, cut_factors
from mergeforget.merge.methods import MERGE_METHODS, traits
from mergeforget.merge.request import (
    at_module,
    canonical,
    check_candidate,
    check_filters,
    check_grams,
    check_ranks,
    depth_of,
)
from mergeforget.tensors import widest

Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class Merged:
    """A merged adapter and the report of its merge.

    Attributes:
        adapter: The merged adapter, with lora_alpha equal to the rank.
        candidate: How it was merged, in canonical names.
        report: ``modules`` and ``precision``; in delta space ``energy_lost``, the share of the
            squared norm that the truncation lost; in factor space, if measured,
            ``space_error``, the relative distance from the same method in delta space; ``shares``,
            the learned coefficients of each module; ``device``, if it is not the CPU.
    """

    adapter: Adapter
    candidate: Candidate
    report: dict[str, Any]

    def __repr__(self) -> str:
        return f"Merged({self.candidate.name}, {len(self.adapter.deltas)} modules)"

    def save(self, folder: str | Path) -> Path:
        """Write a plain PEFT folder with ``candidate.json`` atomically.

        Raises:
            InputError: ``folder`` contains files that no merge wrote.
        """
        check_free(Path(folder), [])
        write_candidate(self, Path(folder))
        return Path(folder)


@dataclass(frozen=True)
class MergeSettings:
    """Settings of a merge that are not part of the candidate.

    Attributes:
        modules: Modules to merge, see ``inputs.modules_to_merge``.
        svd: ``exact`` or ``fast``, see ``truncated_svd.cut_dense``.
        precision: Precision of the computation, ``float32`` or ``float64``.
        compare: Measure ``space_error`` for every method, with dense deltas. For ``linear`` it
            is always measured, from rank-sized matrices.
        threads: Maximum number of threads; it does not change the result.
        grams: Statistics of the inputs of each module, for methods that need them, see
            ``activation_grams``.
        same_base: Merge even if the adapters name bases with different content.
        device: Device that merges stacks of tensors and truncates deltas, for example ``cuda``,
            with torch; ``cpu`` uses numpy. Rank-sized matrices stay on the CPU.
    """

    modules: Modules = "same"
    svd: Svd = "fast"
    precision: str = "float32"
    compare: bool = False
    threads: int = 0
    grams: Grams | None = None
    same_base: bool = False
    device: str = "cpu"


class MergedModule(NamedTuple):
    """One merged module.

    Attributes:
        delta: The result.
        energy: Squared norm of the method's result in delta space.
        error: Squared distance of ``delta`` from that result; None if it was not measured.
    """

    delta: LowRankDelta
    energy: float
    error: float | None


def merge_adapters(
    adapters: Sequence[Adapter], candidate: Candidate, how: MergeSettings | None = None
) -> Merged:
    """Merge adapters of one base into one.

    Args:
        adapters: Over and under, or any number of adapters.
        candidate: Method, density, one weight per adapter, space, rank, seed and arguments.
            PEFT's names such as ``ties_svd`` set method and space.

    Raises:
        UsageError: Unknown method or argument, or a density or weights that do not apply.
        InputError: The adapters cannot be merged exactly, see ``inputs.check_adapters``.
        NumericError: An adapter contains NaN or Inf.
    """
    return sweep(adapters, candidate, [candidate.density], how)[0]


def sweep(
    adapters: Sequence[Adapter],
    candidate: Candidate,
    densities: Sequence[float | None],
    how: MergeSettings | None = None,
) -> list[Merged]:
    """Merge at several densities, with one pass over the magnitudes of each tensor.

    Returns:
        One result per density, bit-identical to that of ``merge_adapters``.

    Raises:
        UsageError, InputError, NumericError: As in ``merge_adapters``.
    """
    how = how or MergeSettings()
    candidates, modules = at_densities(adapters, candidate, densities, how)
    dispatch.expect(_work(adapters, candidates))
    depth = depth_of(modules)

    def merge(module: str) -> list[MergedModule]:
        settings = [at_module(one, module, depth[module]) for one in candidates]
        with np.errstate(over="ignore", invalid="ignore"):  # the result is checked
            try:
                return merge_module(module, adapters, settings, how)
            except np.linalg.LinAlgError as error:
                raise NumericError(
                    f"{module} cannot be truncated to a rank: its values are too large ({error}). "
                    "Use smaller weights, or --precision float64."
                ) from error

    parts = map_in_threads(merge, modules, how.threads)
    columns = zip(*parts, strict=True)
    merged = [
        _merged(adapters, one, dict(zip(modules, column, strict=True)), how.precision)
        for one, column in zip(candidates, columns, strict=True)
    ]
    if how.device != "cpu":
        merged = [replace(one, report=one.report | {"device": how.device}) for one in merged]
    if how.grams is not None and traits(candidates[0].method).coefficients:
        shares = {name: [float(x) for x in how.grams[name]] for name in modules}
        merged = [replace(one, report=one.report | {"shares": shares}) for one in merged]
    return merged


def _work(adapters: Sequence[Adapter], candidates: Sequence[Candidate]) -> int:
    """Return the number of entries that the method processes."""
    dense = is_dense(candidates[0])
    entries = sum(
        math.prod(delta.shape) if dense else delta.a.size + delta.b.size
        for adapter in adapters
        for delta in adapter.deltas.values()
    )
    return entries * len(candidates)


def at_densities(
    adapters: Sequence[Adapter],
    candidate: Candidate,
    densities: Sequence[float | None],
    how: MergeSettings,
) -> tuple[list[Candidate], list[str]]:
    """Return one checked candidate per density, in canonical names, and the modules to merge."""
    candidate = canonical(candidate)
    candidates = [replace(candidate, density=density) for density in densities]
    for one in candidates:
        check_candidate(one, len(adapters))
    check_grams(candidate, how.grams)
    check_device(how.device)
    if "base_weights" in MERGE_METHODS.get(candidate.method).parameters:
        raise UsageError(
            f"{candidate.method} compares whole weights with the base, so its result is a whole "
            "model: add --full, without --rank, or use merge-models."
        )
    check_adapters(adapters, same_base=how.same_base)
    modules = modules_to_merge(adapters, how.modules)
    check_ranks(adapters, modules, candidate)
    check_filters(candidate, modules)
    return candidates, modules


def merge_module(
    module: str, adapters: Sequence[Adapter], candidates: Sequence[Candidate], how: MergeSettings
) -> list[MergedModule]:
    """Merge one module for candidates that differ only in density."""
    first = candidates[0]
    present = [i for i, adapter in enumerate(adapters) if module in adapter.deltas]
    deltas = [precise(adapters[i].deltas[module], how.precision) for i in present]
    weights = np.array([first.weights[i] for i in present], np.float64)
    if first.space == "factors":
        embedding = any(module in adapters[i].embeddings for i in present)
        return _in_factors(module, deltas, weights, candidates, how, embedding=embedding)
    if how.grams is not None and traits(first.method).coefficients:
        first = replace(first, arguments=first.arguments | {"shares": how.grams[module]})
    elif how.grams is not None and traits(first.method).maps is None:
        return _by_importance(deltas, weights, candidates, how, how.grams[module])
    elif how.grams is not None:
        deltas = mapped(deltas, how.grams[module], first)
        first = replace(first, method="linear", arguments={})
    if first.method == "cat":
        stacked = stacked_sum(deltas, weights)
        return [MergedModule(stacked, stacked.norm() ** 2, 0.0)] * len(candidates)
    rank = first.rank or max(delta.rank for delta in deltas)
    coefficients, factors = traits(first.method).coefficients, traits(first.method).factors
    if factors:
        merged = [factors(deltas, weights, **method_arguments(one)) for one in candidates]
        return [_part(cut_factors(a, b, rank), deltas[0].a.dtype) for a, b in merged]
    if coefficients:
        multipliers = coefficients(lambda: gram(deltas), weights, **first.arguments)
        stacked = stacked_sum(deltas, multipliers)
        return [_part(cut_factors(stacked.a, stacked.b, rank))] * len(candidates)
    start = np.concatenate([delta.a for delta in deltas])
    dense = merge_whole(on_device(products(deltas), how.device), weights, candidates, module)
    return [_part(cut_dense(x, rank, like(start, x), how.svd)) for x in dense]


def _by_importance(
    deltas: list[LowRankDelta],
    weights: Array,
    candidates: Sequence[Candidate],
    how: MergeSettings,
    importance: Sequence[Array],
) -> list[MergedModule]:
    """Merge the dense deltas of one module with the measured importance of their entries."""
    stack = np.stack([delta.dense() for delta in deltas])
    rank = candidates[0].rank or max(delta.rank for delta in deltas)
    start = np.concatenate([delta.a for delta in deltas])
    parts = []
    for one in candidates:
        keywords = method_arguments(one) | supplied(one, importance)
        merged = as_array(MERGE_METHODS.get(one.method).fn(stack, weights, **keywords))
        parts.append(_part(cut_dense(merged, rank, start, how.svd)))
    return parts


def method_arguments(candidate: Candidate) -> dict[str, Any]:
    """Return the keyword arguments of a function in ``Traits.factors``."""
    density = {} if candidate.density is None else {"density": candidate.density}
    return candidate.arguments | density


def is_dense(candidate: Candidate) -> bool:
    """Return whether the merge computes dense deltas and truncates them to a rank."""
    known = traits(candidate.method)
    low_rank = candidate.method == "cat" or known.coefficients or known.maps or known.factors
    return candidate.space == "delta" and not low_rank


def check_rank(candidate: Candidate, adapters: Sequence[Adapter], rank: int) -> None:
    """Raise UsageError for a rank that no module of the result can have."""
    ranks: dict[str, int] = {}
    sides: dict[str, int] = {}
    for adapter in adapters:
        for name, delta in adapter.deltas.items():
            ranks[name] = ranks.get(name, 0) + delta.rank
            sides[name] = min(delta.shape)
    if not is_dense(canonical(candidate)):  # a sum of the deltas has at most the sum of the ranks
        sides = {name: min(side, ranks[name]) for name, side in sides.items()}
    largest = max(sides.values(), default=rank)
    if rank > largest:
        raise UsageError(
            f"Rank {rank} is more than the result can have: its deltas have at most rank "
            f"{largest}. Give a smaller rank, or leave it out."
        )


def _in_factors(
    module: str,
    deltas: list[LowRankDelta],
    weights: Array,
    candidates: Sequence[Candidate],
    how: MergeSettings,
    *,
    embedding: bool = False,
) -> list[MergedModule]:
    """Apply the method to the stacked A and to the stacked B, as PEFT's ``ties`` does.

    Args:
        embedding: The module is an embedding, so that ``b`` is the transpose of PEFT's A.
    """
    scaled = weights * [delta.scaling for delta in deltas]
    roots = np.sqrt(np.abs(scaled))
    # sign on PEFT's A only, because two signs would cancel
    signed = np.where(scaled >= 0, roots, -roots)
    of_a, of_b = (roots, signed) if embedding else (signed, roots)
    stacks = np.stack([d.a for d in deltas]), np.stack([d.b for d in deltas])
    sources = [on_device(in_memory(stack), how.device) for stack in stacks]
    a = merge_whole(sources[0], of_a, candidates, f"{module}.lora_A")
    b = merge_whole(sources[1], of_b, candidates, f"{module}.lora_B")
    merged = [LowRankDelta(as_array(x), as_array(y), 1.0) for x, y in zip(a, b, strict=True)]
    if candidates[0].method == "linear":
        energy, error = cross_terms(deltas, weights, of_a, of_b)
        return [MergedModule(m, energy, error) for m in merged]
    if not how.compare:
        return [MergedModule(m, 0.0, None) for m in merged]
    dense = map(as_array, merge_whole(products(deltas), weights, candidates, module))
    return [
        MergedModule(m, squared_norm(x), squared_norm(m.dense() - x))
        for m, x in zip(merged, dense, strict=True)
    ]


def _part(cut: TruncatedDelta, dtype: Any = None) -> MergedModule:
    a, b = as_array(cut.a), as_array(cut.b)
    if dtype is not None:
        a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    return MergedModule(LowRankDelta(a, b, 1.0), cut.energy, max(0.0, cut.energy - cut.kept))


def _merged(
    adapters: Sequence[Adapter],
    candidate: Candidate,
    parts: dict[str, MergedModule],
    precision: str,
) -> Merged:
    deltas = {module: part.delta for module, part in parts.items()}
    report: dict[str, Any] = {"modules": len(parts), "precision": precision}
    errors = [part.error for part in parts.values() if part.error is not None]
    energy = sum(part.energy for part in parts.values())
    if errors and energy:
        share = sum(errors) / energy
        if candidate.space == "delta":
            report["energy_lost"] = share
        else:
            report["space_error"] = math.sqrt(share)
    config = merged_config(adapters, list(parts))
    embeddings = frozenset().union(*(a.embeddings for a in adapters)) & deltas.keys()
    dtype = widest([a.dtype for a in adapters])
    adapter = Adapter(
        candidate.name, deltas, config, {}, dtype, frozenset(embeddings), shared_tokenizer(adapters)
    )
    check_finite(adapter, "The merge overflows: use smaller weights, or --precision float64.")
    return Merged(adapter, candidate, report)


def write_candidate(merged: Merged, folder: Path) -> None:
    """Write a plain PEFT folder with ``candidate.json`` (candidate and report) atomically."""
    facts = merged.candidate.to_dict() | merged.report
    write_adapter(merged.adapter, folder, {"candidate.json": facts})
