"""Applies a merge method to adapters, module by module, in factor or delta space.

On a CPU everything is numpy: neither torch nor the base model is needed.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta, write_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.inputs import Modules, check_adapters, merged_config, modules_to_merge
from mergeforget.merge.lowrank import Cut, Svd, cut_dense, cut_factors
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.merge.ops import Thresholds, check_density
from mergeforget.registry import Entry

Array = NDArray[Any]
PEFT_TYPES = {
    "svd": "linear",
    "ties_svd": "ties",
    "dare_linear_svd": "dare_linear",
    "dare_ties_svd": "dare_ties",
    "magnitude_prune_svd": "magnitude_prune",
}
GIVEN = ("density", "generator")  # what the engine gives a method; the rest are arguments


@dataclass(frozen=True)
class Merged:
    """A merged adapter, and what the merge has to tell.

    Attributes:
        adapter: with the scaling multiplied in (lora_alpha equals the rank).
        candidate: how it was merged, in canonical names.
        report: ``modules``, ``norm`` (Frobenius, over all modules), in delta space
            ``energy_lost`` (share of the squared norm that the cut to the rank left out), in
            factor space ``space_error`` where it was measured.
    """

    adapter: Adapter
    candidate: Candidate
    report: dict[str, Any]


@dataclass(frozen=True)
class How:
    """How modules are merged, apart from the candidate.

    Attributes:
        modules: which, see ``inputs.modules_to_merge``.
        svd: ``exact`` or ``fast``, see ``lowrank.cut_dense``.
        precision: of the computation, ``float32`` or ``float64``.
        compare: measure ``space_error`` for every method; it takes dense deltas. For ``linear`` it
            is always measured, from rank-sized matrices.
        threads: at most; the number changes no bit.
    """

    modules: Modules = "same"
    svd: Svd = "fast"
    precision: str = "float32"
    compare: bool = False
    threads: int = 0


class Part(NamedTuple):
    """One merged module.

    Attributes:
        delta: the result.
        energy: squared norm of what the method gives in delta space.
        error: squared distance of ``delta`` from that; None where it was not measured.
    """

    delta: LowRankDelta
    energy: float
    error: float | None


def merge_adapters(
    adapters: Sequence[Adapter], candidate: Candidate, how: How | None = None
) -> Merged:
    """Merge adapters of one base into one.

    Args:
        adapters: over and under, or any number.
        candidate: method, density, one weight per adapter, space, rank, seed, arguments.
            PEFT's names (``ties_svd`` ...) are taken as method and space.

    Raises:
        UsageError: unknown method or argument, a density or weights that do not fit.
        InputError: adapters that cannot be merged exactly, see ``inputs.check_adapters``.
        NumericError: NaN or Inf in an adapter.
    """
    return sweep(adapters, candidate, [candidate.density], how)[0]


def sweep(
    adapters: Sequence[Adapter],
    candidate: Candidate,
    densities: Sequence[float | None],
    how: How | None = None,
) -> list[Merged]:
    """Merge at many densities, with one pass over the magnitudes of each tensor.

    Returns:
        One result per density, each the same to the bit as ``merge_adapters`` gives it alone.

    Raises:
        as ``merge_adapters``.
    """
    how = how or How()
    candidate = canonical(candidate)
    candidates = [replace(candidate, density=density) for density in densities]
    for one in candidates:
        check_candidate(one, len(adapters))
    check_adapters(adapters)
    modules = modules_to_merge(adapters, how.modules)
    check_ranks(adapters, modules, candidate)

    def merge(module: str) -> list[Part]:
        return merge_module(module, adapters, candidates, how)

    with ThreadPoolExecutor(how.threads or os.cpu_count() or 1) as pool:
        parts = list(pool.map(merge, modules))
    columns = zip(*parts, strict=True)
    return [
        _merged(adapters, one, dict(zip(modules, column, strict=True)))
        for one, column in zip(candidates, columns, strict=True)
    ]


def canonical(candidate: Candidate) -> Candidate:
    """The candidate with PEFT's spellings resolved: ``ties_svd`` is ``ties`` in delta space."""
    method = candidate.method.replace("-", "_")
    if method == "cat":
        return replace(candidate, method=method, space="delta")
    if method in PEFT_TYPES:
        return replace(candidate, method=PEFT_TYPES[method], space="delta")
    return replace(candidate, method=method)


def check_candidate(candidate: Candidate, adapters: int) -> Entry[Any]:
    """Raise UsageError where method, density, weights or arguments do not fit; return the method.

    Raises:
        UnknownNameError, DensityError: both are usage errors.
    """
    entry = MERGE_METHODS.get(candidate.method)
    takes = entry.parameters
    if "density" in takes and candidate.density is not None:
        check_density(candidate.density)
    elif "density" in takes and takes["density"].default is inspect.Parameter.empty:
        raise UsageError(f"{entry.name} needs a density, for example --density 0.8.")
    elif candidate.density is not None and "density" not in takes:
        raise UsageError(f"{entry.name} keeps every entry; it takes no density.")
    if len(candidate.weights) != adapters:
        raise UsageError(
            f"There are {adapters} adapters and {len(candidate.weights)} weights; give one weight "
            "each, for example --weights 1,0.5."
        )
    if not all(math.isfinite(w) for w in candidate.weights):
        raise UsageError(f"Every weight must be a finite number, not {candidate.weights}.")
    if candidate.rank is not None and candidate.space == "factors":
        raise UsageError(
            "In factor space the result has the rank of the adapters. A rank is chosen in delta "
            "space: add --space delta."
        )
    for name in GIVEN:
        if name in candidate.arguments:
            raise UsageError(f"{name} is no argument of a method; give it by its own option.")
    entry.check_arguments(candidate.arguments)
    return entry


def check_ranks(adapters: Sequence[Adapter], modules: Sequence[str], candidate: Candidate) -> None:
    """Raise InputError where factor space meets factors of different shapes."""
    if candidate.space != "factors":
        return
    for module in modules:
        ranks = {a.name: a.deltas[module].rank for a in adapters if module in a.deltas}
        if len(set(ranks.values())) > 1:
            found = ", ".join(f"{rank} in {name!r}" for name, rank in ranks.items())
            raise InputError(
                f"In factor space ranks must be equal, but {module} has rank {found}. Merge the "
                "products instead with --space delta."
            )


def merge_module(
    module: str, adapters: Sequence[Adapter], candidates: Sequence[Candidate], how: How
) -> list[Part]:
    """Merge one module for candidates that differ in their density only."""
    first = candidates[0]
    present = [i for i, adapter in enumerate(adapters) if module in adapter.deltas]
    deltas = [_precise(adapters[i].deltas[module], how.precision) for i in present]
    weights = np.array([first.weights[i] for i in present], np.float64)
    if first.space == "factors":
        return _in_factors(module, deltas, weights, candidates, how)
    if first.method == "cat":
        stacked = _stacked(deltas, weights)
        return [Part(stacked, stacked.norm() ** 2, 0.0)] * len(candidates)
    rank = first.rank or max(delta.rank for delta in deltas)
    if first.method == "linear":
        stacked = _stacked(deltas, weights)
        return [_part(cut_factors(stacked.a, stacked.b, rank))] * len(candidates)
    start = np.concatenate([delta.a for delta in deltas])
    dense = apply_method(_dense(deltas), weights, candidates, module)
    return [_part(cut_dense(x, rank, start, how.svd)) for x in dense]


def apply_method(
    stack: Array, weights: Array, candidates: Sequence[Candidate], name: str
) -> list[Array]:
    """The method on one stack, (n, *shape), once for each candidate's density.

    Args:
        name: of the tensor; with the seed it decides what a random method draws.
    """
    first = candidates[0]
    entry = MERGE_METHODS.get(first.method)
    given: dict[str, Any] = dict(first.arguments)
    densities = [one.density for one in candidates if one.density is not None]
    if not densities:
        return [entry.fn(stack, weights, **given)] * len(candidates)
    results = []
    for density in Thresholds(stack, densities).shares():
        if "generator" in entry.parameters:
            given["generator"] = generator_for(first.seed, name)
        results.append(entry.fn(stack, weights, density=density, **given))
    return results


def generator_for(seed: int, name: str) -> np.random.Generator:
    """Numbers that depend on the seed and the tensor's name alone.

    So they are the same whatever the order, the thread count or the device of other tensors.
    """
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def _in_factors(
    module: str,
    deltas: list[LowRankDelta],
    weights: Array,
    candidates: Sequence[Candidate],
    how: How,
) -> list[Part]:
    """The method on the stacked A, then on the stacked B, as PEFT's ``ties``, ``linear`` ... do."""
    scaled = weights * [delta.scaling for delta in deltas]
    roots = np.sqrt(np.abs(scaled))
    signed = np.where(scaled >= 0, roots, -roots)  # on A only: on both the signs would cancel
    a = apply_method(np.stack([d.a for d in deltas]), signed, candidates, f"{module}.lora_A")
    b = apply_method(np.stack([d.b for d in deltas]), roots, candidates, f"{module}.lora_B")
    merged = [LowRankDelta(x, y, 1.0) for x, y in zip(a, b, strict=True)]
    if candidates[0].method == "linear":
        wanted = _stacked(deltas, weights)
        return [Part(m, wanted.norm() ** 2, _apart(m, wanted)) for m in merged]
    if not how.compare:
        return [Part(m, 0.0, None) for m in merged]
    dense = apply_method(_dense(deltas), weights, candidates, module)
    return [Part(m, _square(x), _square(m.dense() - x)) for m, x in zip(merged, dense, strict=True)]


def _stacked(deltas: Sequence[LowRankDelta], weights: Array) -> LowRankDelta:
    """``sum_i w_i delta_i`` as one pair of factors, exact, as PEFT's ``cat`` stores it."""
    dtype = deltas[0].a.dtype
    scaled = [
        d.a * dtype.type(w) * dtype.type(d.scaling) for d, w in zip(deltas, weights, strict=True)
    ]
    return LowRankDelta(np.concatenate(scaled), np.concatenate([d.b for d in deltas], axis=1), 1.0)


def _dense(deltas: Sequence[LowRankDelta]) -> Array:
    """(n, out, in)"""
    stack = np.empty((len(deltas), *deltas[0].shape), deltas[0].a.dtype)
    for delta, place in zip(deltas, stack, strict=True):
        np.matmul(delta.b, delta.a, out=place)
        place *= delta.scaling
    return stack


def _part(cut: Cut) -> Part:
    return Part(LowRankDelta(cut.a, cut.b, 1.0), cut.energy, max(0.0, cut.energy - cut.kept))


def _precise(delta: LowRankDelta, dtype: str) -> LowRankDelta:
    a, b = delta.a.astype(dtype, copy=False), delta.b.astype(dtype, copy=False)
    return LowRankDelta(a, b, delta.scaling)


def _apart(one: LowRankDelta, other: LowRankDelta) -> float:
    """Squared Frobenius distance, from rank-sized matrices."""
    return max(0.0, one.norm() ** 2 + other.norm() ** 2 - 2 * one.inner(other))


def _square(x: Array) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))


def _merged(adapters: Sequence[Adapter], candidate: Candidate, parts: dict[str, Part]) -> Merged:
    deltas = {module: part.delta for module, part in parts.items()}
    norm = math.sqrt(sum(delta.norm() ** 2 for delta in deltas.values()))
    report: dict[str, Any] = {"modules": len(parts), "norm": norm}
    errors = [part.error for part in parts.values() if part.error is not None]
    energy = sum(part.energy for part in parts.values())
    if errors and energy:
        share = sum(errors) / energy
        if candidate.space == "delta":
            report["energy_lost"] = share
        else:
            report["space_error"] = math.sqrt(share)
    config = merged_config(adapters, list(parts))
    adapter = Adapter(candidate.name, deltas, config, {}, adapters[0].dtype)
    return Merged(adapter, candidate, report)


def write_candidate(merged: Merged, folder: Path) -> None:
    """Write a plain PEFT folder with ``candidate.json``, whole or not at all.

    ``candidate.json`` holds the candidate and the report of its merge.
    """
    facts = merged.candidate.to_dict() | merged.report
    write_adapter(merged.adapter, folder, {"candidate.json": facts})
