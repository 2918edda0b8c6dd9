"""Densities, weights and arguments that depend on the module or the depth, as in mergekit.

A setting is a number, a gradient (a list that is interpolated over the layers), or a list of
filters ``{"filter": part of a name, "value": number or gradient}``. The first filter that matches
applies; ``*`` or no filter matches every name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mergeforget.candidate import Candidate
from mergeforget.errors import UsageError

LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def depth_of(names: Iterable[str]) -> dict[str, float]:
    """Return the relative depth of each tensor or module, from 0 to 1; 0 outside layers."""
    layers = {name: LAYER.search(name) for name in names}
    numbers = {name: int(found[1]) for name, found in layers.items() if found}
    last = max(numbers.values(), default=0)
    return {name: numbers.get(name, 0) / last if last else 0.0 for name in layers}


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
            found = evaluate(setting, name, depth)
            arguments |= {} if found is None else {key: found}
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
        found = [[float(x) for x in part.split("..")] for part in values.split(",")]
    except ValueError:
        found = []
    if not equals or not found:
        raise UsageError(
            f"{text!r} is not FILTER=VALUE, for example mlp=0.5, or a gradient over the layers: "
            "mlp=0.9..0.3."
        )
    return pattern or "*", [one[0] if len(one) == 1 else one for one in found]


def _or(value: Any, other: Any) -> Any:
    return other if value is None else value
