"""Build the candidates of a search, and predict the density to begin with.

The candidates are the product of methods, densities, weights and spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from inspect import Parameter
from itertools import product
from typing import TypeVar

import numpy as np

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.candidate import Candidate, Space
from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.errors import MergeforgetError, UsageError
from mergeforget.files import read_jsonl, reading
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.inputs import first_names
from mergeforget.merge.methods import MERGE_METHODS, SUPPLIED
from mergeforget.merge.prediction import predict_gaps
from mergeforget.merge.request import LAYER, canonical, check_candidate, looks_at_data
from mergeforget.metrics._statistics import loss_gap
from mergeforget.recipe import SearchSpec
from mergeforget.run import ANCHORS, Run
from mergeforget.search.split import SearchData

T = TypeVar("T")
ADAPTERS = 2  # over and under
A_SHAPE, B_SHAPE = (4, 16), (16, 4)  # of the adapters that ``refusal`` merges


def grid(spec: SearchSpec) -> list[Candidate]:
    """Return every candidate once, ordered from a coarse to a fine grid of densities.

    A search that stops early has then explored small, medium and large densities. Candidates that
    cannot be merged are left out, see ``refusal``.

    Raises:
        UsageError: Unknown method, a density or weights that do not fit it, or a method none of
            whose candidates can be merged in a search.
    """
    found = _every_candidate(spec)
    kept = [c for c in found if not refusal(c)]
    for method in {c.method for c in found} - {c.method for c in kept}:
        refused = next(c for c in found if c.method == method)
        others = "" if refused.density is None else "give other --densities, or "
        raise UsageError(
            f"A search cannot merge the pair with {method}: {refusal(refused)}. To continue, "
            f"{others}leave {method} out of --methods."
        )
    return kept


def left_out(spec: SearchSpec) -> str:
    """Return a sentence about the candidates that ``grid`` leaves out; empty if there are none."""
    refused = [c for c in _every_candidate(spec) if refusal(c)]
    names = first_names(c.name for c in refused)
    return f"Leaving out {names}: {refusal(refused[0])}." if refused else ""


def refusal(candidate: Candidate) -> str:
    """Return why a search cannot merge two adapters like this, as a clause; empty if it can.

    Two small adapters are merged to find out, before anything is measured.
    """
    return _refusal(candidate.method, candidate.density, candidate.weights, candidate.space)


@cache
def _refusal(method: str, density: float | None, weights: tuple[float, ...], space: Space) -> str:
    candidate = Candidate(method, density, weights, space)
    by_hand = f"`mergeforget merge RUN --method {method}` merges with it"
    if looks_at_data(candidate):
        return f"it is computed from rows of data, which a search does not give it; {by_hand}"
    if "base_weights" in MERGE_METHODS.get(method).parameters:
        return "it compares one whole model with the base, and its result is no adapter"
    draw = np.random.default_rng(0)
    pair = [
        Adapter(
            side,
            {"layers.0.q": LowRankDelta(draw.normal(size=A_SHAPE), draw.normal(size=B_SHAPE), 1.0)},
            {},
        )
        for side in ("over", "under")
    ]
    try:
        merge_adapters(pair, candidate)
    except UsageError as error:
        return str(error).partition(". ")[0].rstrip(".")  # the rest names options of `merge`
    except MergeforgetError:  # the search names it when it happens
        pass
    return ""


def _every_candidate(spec: SearchSpec) -> list[Candidate]:
    candidates: dict[str, Candidate] = {}
    for density in ends_first(spec.densities):
        for method, weights, space, rank in product(
            spec.methods, spec.weights, spec.spaces, spec.ranks
        ):
            candidate = build(method, density, tuple(weights), space, spec.seed, rank)
            candidates.setdefault(candidate.name, candidate)
    return list(candidates.values())


def build(
    method: str,
    density: float,
    weights: tuple[float, ...],
    space: Space,
    seed: int,
    rank: int | None = None,
) -> Candidate:
    """Return a candidate without the density, seed or rank that its method does not take.

    Raises:
        UsageError: Unknown method, a density or weights that do not fit it.
    """
    whole = canonical(Candidate(method, density, weights, space, seed=seed))
    takes = MERGE_METHODS.get(whole.method).parameters
    for name, parameter in takes.items():
        if parameter.default is Parameter.empty and name not in SUPPLIED:
            raise UsageError(
                f"A search cannot merge the pair with {whole.method}: it needs the argument "
                f"{name}, which a search does not set; `mergeforget merge RUN --method "
                f"{whole.method} --set {name}=VALUE` merges with it. To continue, leave "
                f"{whole.method} out of --methods."
            )
    candidate = replace(
        whole,
        density=whole.density if "density" in takes else None,
        seed=whole.seed if "generator" in takes else 0,
        rank=rank if whole.space == "delta" and whole.method != "cat" else None,
    )
    check_candidate(candidate, ADAPTERS)
    return candidate


def ends_first(values: Sequence[T]) -> list[T]:
    """Reorder values: both ends first, then the middle, then the quarters, and so on.

    >>> ends_first([1, 2, 3, 4, 5])
    [1, 5, 3, 2, 4]
    """
    order = list(dict.fromkeys([0, len(values) - 1])) if values else []
    gaps = [(0, len(values) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if middle not in (low, high):
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [values[i] for i in order]


def usable_densities(candidate: Candidate, densities: Iterable[float]) -> list[float]:
    """Return the densities at which a candidate can be merged, in ascending order."""
    return [d for d in sorted(set(densities)) if not refusal(replace(candidate, density=d))]


def begin_at(candidates: Sequence[Candidate], density: float | None) -> list[Candidate]:
    """Move the candidates nearest to a density to the front; the others keep their order."""
    known = [c.density for c in candidates if c.density is not None]
    if density is None or not known:
        return list(candidates)
    nearest = min(known, key=lambda d: abs(d - density))
    return sorted(candidates, key=lambda c: c.density != nearest)


def families(candidates: Iterable[Candidate]) -> dict[tuple[object, ...], list[Candidate]]:
    """Group candidates that differ only in density, which one sweep merges together."""
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for c in candidates:
        others = repr((sorted(c.arguments.items()), sorted(c.by_module.items())))
        key = (c.method, c.weights, c.space, c.rank, c.seed, others)
        groups.setdefault(key, []).append(c)
    return groups


def lines(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Order candidates along the axis that ``refine`` searches.

    Returns:
        The candidates of each family by density. If there is only one density, those that differ
        in the weights of two adapters alone form a line from the second adapter to the first.
    """
    if len({c.density for c in candidates}) > 1 or any(first_share(c) is None for c in candidates):
        return [
            sorted(family, key=lambda c: c.density or 0.0)
            for family in families(candidates).values()
        ]
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for c in candidates:
        (key,) = families([replace(c, weights=())])
        groups.setdefault(key, []).append(c)
    return [sorted(line, key=lambda c: first_share(c) or 0.0) for line in groups.values()]


def along_weights(line: Sequence[Candidate]) -> bool:
    """Return whether the candidates of a line differ in their weights instead of densities."""
    return len({c.density for c in line}) < len(line)


def first_share(candidate: Candidate) -> float | None:
    """Return the share of the first of two adapters in the sum of the weights.

    None if there are not two, or if a weight is negative.
    """
    weights = candidate.weights
    if len(weights) != 2 or min(weights) < 0 or not sum(weights):
        return None
    return weights[0] / sum(weights)


def layer_groups(modules: Iterable[str], number: int) -> list[list[str]]:
    """Divide the layers into ``number`` consecutive groups of about the same size.

    Returns:
        For each group the prefixes of its layers, ``model.layers.3.``, which are filters of
        ``Candidate.by_module``.

    Raises:
        UsageError: There are fewer layers than groups.
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
    """Set a density per group of layers; modules outside the layers get the mean."""
    mean = round(sum(densities) / len(densities), 4)
    if len(set(densities)) == 1:
        return replace(candidate, density=densities[0], by_module={})
    setting = [
        {"filter": name, "value": density}
        for group, density in zip(groups, densities, strict=True)
        for name in group
    ]
    return replace(candidate, density=mean, by_module={"density": setting})


@dataclass
class PredictedDensity:
    """Predict a density from the document losses of base, over and under (selection split).

    Attributes:
        given: Density set by the caller, which replaces every prediction.
        made: Predictions by family.
    """

    run: Run
    pair: Sequence[Adapter]
    choosing: SearchData
    given: float | None

    def __post_init__(self) -> None:
        self.made: dict[str, float] = {}

    def __call__(self, candidate: Candidate, densities: Sequence[float]) -> float | None:
        """Predict the density at which a family is balanced; None if its method has none."""
        if self.given is not None or candidate.density is None:
            return self.given
        usable = usable_densities(candidate, densities)
        if not usable:
            return None
        if candidate.family not in self.made:
            over, under = self.pair
            prediction = predict_gaps(over, under, self._gaps, candidate, usable)
            self.made[candidate.family] = prediction.density
            where = "" if prediction.crosses else ", although no density balances it"
            say(f"Predicted density of {candidate.family}: {prediction.density:.2f}{where}.")
        return self.made[candidate.family]

    @cached_property
    def _gaps(self) -> dict[str, float]:
        return {name: gap(self.run, name, self.choosing) for name in ANCHORS}


def gap(run: Run, model: str, data: SearchData) -> float:
    """Return the ``loss_gap`` of a model on the documents of ``data``, in nats per token."""
    path = run.answers / f"{model}.losses.jsonl"
    with reading(path):
        losses = {(bool(row["member"]), row["id"]): float(row["nll"]) for row in read_jsonl(path)}

    def of(rows: Sequence[Row], member: bool) -> list[float]:
        with reading(path):
            return [losses[member, row.id] for row in rows]

    return loss_gap(of(data.members, True), of(data.nonmembers, False))
