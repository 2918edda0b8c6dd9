"""Densities that differ between groups of layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mergeforget.candidate import Candidate
from mergeforget.errors import UsageError
from mergeforget.merge.by_module import LAYER


def layer_groups(modules: Iterable[str], number: int) -> list[list[str]]:
    """The layers in ``number`` groups of about the same size, first to last.

    Returns:
        For each group the names up to the layer's number, ``model.layers.3.``, which are filters
        of ``Candidate.by_module``.

    Raises:
        UsageError: there are fewer layers than groups.
    """
    layers: dict[int, set[str]] = {}
    for module in modules:
        if match := LAYER.search(module):
            layers.setdefault(int(match[1]), set()).add(module[: match.end()])
    if len(layers) < number:
        raise UsageError(f"There are {len(layers)} layers, too few for {number} groups of them.")
    ordered = [sorted(layers[i]) for i in sorted(layers)]
    ends = [round(i * len(ordered) / number) for i in range(number + 1)]
    return [
        [name for layer in ordered[low:high] for name in layer]
        for low, high in zip(ends, ends[1:], strict=False)
    ]


def with_densities(
    candidate: Candidate, groups: Sequence[Sequence[str]], densities: Sequence[float]
) -> Candidate:
    """The candidate with a density for each group; modules outside every layer take the mean."""
    mean = round(sum(densities) / len(densities), 4)
    if len(set(densities)) == 1:
        return replace(candidate, density=densities[0], by_module={})
    setting = [
        {"filter": name, "value": density}
        for group, density in zip(groups, densities, strict=True)
        for name in group
    ]
    return replace(candidate, density=mean, by_module={"density": setting})
