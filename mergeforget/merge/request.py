"""Resolves the names in a candidate and checks it before any work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.candidate import DEFAULT, Candidate
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.kernels.thresholds import check_density
from mergeforget.merge.methods import MERGE_METHODS, SUPPLIED
from mergeforget.registry import Entry

PEFT_TYPES = {
    "svd": "linear",
    "ties_svd": "ties",
    "dare_linear_svd": "dare_linear",
    "dare_ties_svd": "dare_ties",
    "magnitude_prune_svd": "magnitude_prune",
}
IN_FACTORS = set(PEFT_TYPES.values())  # methods that PEFT applies to A and B separately
FACTOR_ARGUMENTS = {"sign", "rescale"}  # scales and shares of weights are not those of the product


def canonical(candidate: Candidate) -> Candidate:
    """The candidate with PEFT's spellings resolved: ``ties_svd`` is ``ties`` in delta space.

    A method that has no meaning on factors works in delta space, and one that draws nothing at
    random has the seed 0, and a method's own default density is filled in, so that what is
    recorded is what was used.
    """
    method = candidate.method.replace("-", "_")
    space = candidate.space if method in IN_FACTORS else "delta"
    if method in PEFT_TYPES:
        method, space = PEFT_TYPES[method], "delta"
    takes = MERGE_METHODS.get(method).parameters
    seed = candidate.seed if "generator" in takes else 0
    density = candidate.density
    if density is None and "density" in takes:
        default = takes["density"].default
        density = None if default is inspect.Parameter.empty else default
    return replace(candidate, method=method, space=space, seed=seed, density=density)


def takes_density(method: str) -> bool:
    """Whether a method has a density, required or not; ``method`` may be PEFT's name for it."""
    return "density" in MERGE_METHODS.get(canonical(Candidate(method)).method).parameters


def needs_density(candidate: Candidate) -> bool:
    """Whether the method of a candidate requires a density."""
    takes = MERGE_METHODS.get(canonical(candidate).method).parameters
    return "density" in takes and takes["density"].default is inspect.Parameter.empty


def looks_at_data(candidate: Candidate) -> bool:
    """Whether the method needs statistics measured on rows."""
    takes = MERGE_METHODS.get(canonical(candidate).method).parameters
    return bool({"grams", "importance", "shares"} & takes.keys())


def check_grams(candidate: Candidate, grams: object | None) -> None:
    """Raise UsageError where a method lacks the data that it needs, or has data it does not."""
    needs = looks_at_data(candidate)
    if needs and grams is None:
        raise UsageError(
            f"{candidate.method} is computed from data: name a file of rows for each adapter with "
            "--data, or one for all."
        )
    if grams is not None and not needs:
        raise UsageError(f"{candidate.method} uses no data; leave --data out.")


def check_candidate(candidate: Candidate, adapters: int) -> Entry[Any]:
    """Raise UsageError where method, density, weights or arguments do not fit; return the method.

    Raises:
        UnknownNameError, DensityError: both are usage errors.
    """
    entry = MERGE_METHODS.get(candidate.method)
    takes = entry.parameters
    if "density" in takes and candidate.density is not None:
        check_density(candidate.density)
    elif needs_density(candidate):
        raise UsageError(f"{entry.name} needs a density, for example {DEFAULT.density}.")
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
    if candidate.rank is not None and entry.name == "cat":
        raise UsageError(
            "cat stacks the factors, so its rank is the sum of theirs: leave --rank out, or use "
            "linear with --space delta, which truncates the same sum."
        )
    for name in SUPPLIED:
        if name in candidate.arguments:
            raise UsageError(f"{name} is not set as an argument; it has its own option.")
    entry.check_arguments(candidate.arguments)
    given = {*candidate.arguments, *candidate.by_module, *SUPPLIED}
    for name, parameter in takes.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise UsageError(f"{entry.name} needs the argument {name}: add --set {name}=VALUE.")
    for name, value in candidate.arguments.items():
        _check_finite(name, value)
    _check_by_module(candidate, entry)
    for name in {*candidate.arguments, *candidate.by_module} - {"density", "weights"}:
        if candidate.space == "factors" and name not in FACTOR_ARGUMENTS:
            raise UsageError(
                f"In factor space {name} would act on A and on B, which has another effect on "
                "their product: add --space delta."
            )
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


def _check_by_module(candidate: Candidate, entry: Entry[Any]) -> None:
    """Raise UsageError for a setting by module that the method or the adapters do not take."""
    for key, setting in candidate.by_module.items():
        if key == "weights":
            if not isinstance(setting, list) or len(setting) != len(candidate.weights):
                raise UsageError(f"Weights by module must be {len(candidate.weights)} settings.")
        elif key == "density" and "density" not in entry.parameters:
            raise UsageError(f"{entry.name} keeps every entry; it takes no density.")
        elif key != "density":
            entry.check_arguments({key: None})
        for value in _numbers(setting) if key == "density" else ():
            check_density(value)
        _check_finite(f"{key} by module", setting)


def _check_finite(name: str, setting: Any) -> None:
    """Raise UsageError for NaN or Inf, which would spoil a merge and which JSON has not."""
    for value in _numbers(setting):
        if not math.isfinite(value):
            raise UsageError(f"Every number of {name} must be finite, not {value}.")


def _numbers(setting: Any) -> list[float]:
    """Every number of a setting, see ``by_module``."""
    if isinstance(setting, dict):
        return _numbers(setting.get("value"))
    if isinstance(setting, list):
        return [number for one in setting for number in _numbers(one)]
    return [setting] if isinstance(setting, int | float) else []
