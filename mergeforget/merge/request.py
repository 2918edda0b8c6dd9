"""Resolve the names and the settings by module of a candidate, and check it before any work.

A setting by module is a number, a gradient (a list that is interpolated over the layers), or a list
of filters ``{"filter": part of a name, "value": number or gradient}``, as in mergekit. The first
filter that matches applies; ``*`` or no filter matches every name.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

from mergeforget.adapter import Adapter
from mergeforget.candidate import DEFAULT, Candidate, Space
from mergeforget.errors import InputError, UsageError, suggest
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
IN_FACTORS = set(PEFT_TYPES.values())  # methods that PEFT applies to A and to B
FACTOR_ARGUMENTS = {"sign", "rescale"}  # arguments that are also meaningful for A and B


def canonical(candidate: Candidate) -> Candidate:
    """Resolve PEFT's names in a candidate: ``ties_svd`` is ``ties`` in delta space.

    A method that is not defined on factors gets delta space, a method without randomness gets
    seed 0, and a default density of the method is filled in, so that the recorded
    candidate is the one that was used.
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
    """Return whether a method has a density, required or not; PEFT's names are accepted."""
    return "density" in MERGE_METHODS.get(canonical(Candidate(method)).method).parameters


def needs_density(candidate: Candidate) -> bool:
    """Return whether the method of a candidate requires a density."""
    takes = MERGE_METHODS.get(canonical(candidate).method).parameters
    return "density" in takes and takes["density"].default is inspect.Parameter.empty


def looks_at_data(candidate: Candidate) -> bool:
    """Return whether the method needs statistics measured on rows."""
    takes = MERGE_METHODS.get(canonical(candidate).method).parameters
    return bool({"grams", "importance", "shares"} & takes.keys())


def check_grams(candidate: Candidate, grams: object | None) -> None:
    """Raise UsageError if a method lacks data that it needs, or gets data that it does not use."""
    needs = looks_at_data(candidate)
    if needs and grams is None:
        raise UsageError(
            f"{candidate.method} is computed from data: name a file of rows for each adapter with "
            "--data, or one for all."
        )
    if grams is not None and not needs:
        raise UsageError(f"{candidate.method} uses no data; leave --data out.")


def check_candidate(candidate: Candidate, adapters: int) -> Entry[Any]:
    """Check method, density, weights and arguments of a candidate; return the method.

    Raises:
        UsageError: A value does not apply; UnknownNameError and DensityError are subclasses.
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
            f"There are {adapters} adapters but {len(candidate.weights)} weights; give one weight "
            "per adapter, for example --weights 1,0.5."
        )
    if not all(math.isfinite(w) for w in candidate.weights):
        raise UsageError(f"Every weight must be a finite number, not {candidate.weights}.")
    if candidate.space not in get_args(Space):
        raise UsageError(f"space must be factors or delta, not {candidate.space!r}.")
    if candidate.rank is not None and (type(candidate.rank) is not int or candidate.rank < 1):
        raise UsageError(f"The rank must be a positive integer, not {candidate.rank!r}.")
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
            raise UsageError(f"{name} cannot be set as an argument; it has its own option.")
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
                f"In factor space, {name} would apply to A and to B, which has another effect on "
                "their product: add --space delta."
            )
    return entry


def check_ranks(adapters: Sequence[Adapter], modules: Sequence[str], candidate: Candidate) -> None:
    """Raise InputError if the ranks differ in factor space."""
    if candidate.space != "factors":
        return
    for module in modules:
        ranks = [(a.name, a.deltas[module].rank) for a in adapters if module in a.deltas]
        if len({rank for _, rank in ranks}) > 1:  # a list, because adapters may share a name
            found = ", ".join(f"{rank} in {name!r}" for name, rank in ranks)
            raise InputError(
                f"In factor space, ranks must be equal, but {module} has rank {found}. Merge the "
                "products instead with --space delta."
            )


def _check_by_module(candidate: Candidate, entry: Entry[Any]) -> None:
    """Raise UsageError for a setting by module that does not apply."""
    for key, setting in candidate.by_module.items():
        if key == "weights":
            if not isinstance(setting, list) or len(setting) != len(candidate.weights):
                raise UsageError(
                    f"Weights by module need {len(candidate.weights)} settings, one per adapter."
                )
        elif key == "density" and "density" not in entry.parameters:
            raise UsageError(f"{entry.name} keeps every entry; it takes no density.")
        elif key != "density":
            entry.check_names([key])
            for value in _values(setting):
                entry.check_value(key, value)
        for value in _numbers(setting) if key == "density" else ():
            check_density(value)
        _check_finite(f"{key} by module", setting)


def _check_finite(name: str, setting: Any) -> None:
    """Raise UsageError for NaN or Inf, which cannot be merged or written as JSON."""
    for value in _numbers(setting):
        if not math.isfinite(value):
            raise UsageError(f"Every number of {name} must be finite, not {value}.")


def _values(setting: Any) -> list[Any]:
    """Return every value of a setting by module."""
    if isinstance(setting, dict):
        return _values(setting.get("value"))
    if isinstance(setting, list):
        return [value for one in setting for value in _values(one)]
    return [setting]


def _numbers(setting: Any) -> list[float]:
    """Return every number of a setting by module."""
    return [value for value in _values(setting) if isinstance(value, int | float)]


LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def depth_of(names: Iterable[str]) -> dict[str, float]:
    """Return the relative depth of each tensor or module, from 0 to 1; 0 outside layers.

    Each stack of layers has its own first and last one: an encoder and a decoder, or the layers for
    images and those for text. A single layer is the last one, as in mergekit.
    """
    layers = {name: LAYER.search(name) for name in names}
    numbers = {name: (name[: m.start()], int(m[1])) for name, m in layers.items() if m}
    last: dict[str, int] = {}
    for stack, number in numbers.values():
        last[stack] = max(number, last.get(stack, 0))
    depth = {name: n / last[stack] if last[stack] else 1.0 for name, (stack, n) in numbers.items()}
    return dict.fromkeys(layers, 0.0) | depth


def check_filters(candidate: Candidate, names: Iterable[str]) -> None:
    """Raise UsageError for a filter of a setting by module that no name contains.

    Args:
        names: Modules or tensors that are merged.
    """
    every = list(names)
    for key, setting in candidate.by_module.items():
        for pattern in _filters(setting):
            if not any(pattern in name for name in every):
                parts = {part for name in every for part in name.split(".")}
                raise UsageError(
                    f"{key} of modules {pattern!r}: none of the {len(every)} merged modules "
                    f"contains it in its name.{suggest(pattern, sorted(parts))} One of them is "
                    f"{every[0]}."
                )


def _filters(setting: Any) -> list[str]:
    """Return the filters of a setting by module that do not match every name."""
    if isinstance(setting, list):
        return [pattern for one in setting for pattern in _filters(one)]
    pattern = setting.get("filter") if isinstance(setting, dict) else None
    return [] if pattern in (None, "*") else [str(pattern)]


def at_module(candidate: Candidate, name: str, depth: float) -> Candidate:
    """Return the candidate with the settings of one module."""
    if not candidate.by_module:
        return candidate
    density, weights = candidate.density, candidate.weights
    arguments = dict(candidate.arguments)
    for key, setting in candidate.by_module.items():
        if key == "weights":
            weights = tuple(
                float(_or(evaluate(one, name, depth), weight))
                for one, weight in zip(setting, weights, strict=True)
            )
        elif key == "density":
            density = _or(evaluate(setting, name, depth), density)
        else:
            setting_value = evaluate(setting, name, depth)
            arguments |= {} if setting_value is None else {key: setting_value}
    return replace(candidate, density=density, weights=weights, arguments=arguments, by_module={})


def evaluate(setting: Any, name: str, depth: float) -> Any:
    """Return the value of a setting for one name; None if no filter matches.

    Raises:
        UsageError: The setting is malformed.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if isinstance(setting, bool | int | float | str):
        return setting
    if not isinstance(setting, list) or not setting:
        raise UsageError(f"{setting!r} is neither a number nor a gradient nor a list of filters.")
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in setting):
        place = depth * (len(setting) - 1)
        low = int(place)
        high = min(len(setting) - 1, low + 1)
        return (1 - (place - low)) * setting[low] + (place - low) * setting[high]
    for one in setting:
        if not isinstance(one, dict) or "value" not in one or set(one) - {"filter", "value"}:
            raise UsageError(f"{one!r} is not a filter; write {{filter: mlp, value: 0.5}}.")
        pattern = one.get("filter")
        if pattern in (None, "*") or str(pattern) in name:
            return evaluate(one["value"], name, depth)
    return None


def parse(text: str) -> tuple[str, list[Any]]:
    """Parse ``mlp=0.9..0.3,1`` into a filter and one value or gradient per comma.

    Raises:
        UsageError: The text is malformed.
    """
    pattern, equals, values = text.rpartition("=")
    try:
        values_by_adapter = [[float(x) for x in part.split("..")] for part in values.split(",")]
    except ValueError:
        values_by_adapter = []
    if not equals or not values_by_adapter:
        raise UsageError(
            f"{text!r} is not FILTER=VALUE, for example mlp=0.5, or a gradient over the layers: "
            "mlp=0.9..0.3."
        )
    return pattern or "*", [one[0] if len(one) == 1 else one for one in values_by_adapter]


def _or(value: Any, other: Any) -> Any:
    return other if value is None else value
