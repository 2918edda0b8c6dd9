"""Overlap and sign conflict of the two adapters, their norms and effective ranks.

Overlap and signs are those of the LoRA factors A and B, which a merge in factor space compares.
Norms and ranks are those of the change ``scaling * b @ a``, computed from rank-sized matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta, read_adapter
from mergeforget.analysis.angles import kind_of, layer_of
from mergeforget.analysis.evidence import MissingError, has_adapter
from mergeforget.merge.kernels.thresholds import kept_count
from mergeforget.run import PAIR, Run

Array = NDArray[Any]
DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class ModuleFacts:
    """One module of one adapter.

    Attributes:
        norm: Frobenius norm of the change.
        effective_rank: Exponential of the entropy of its singular values, from 1 to its rank.
    """

    model: str
    module: str
    layer: int | None
    kind: str
    rank: int
    norm: float
    effective_rank: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """Overlap and sign conflict of the trimmed factors of over and under, over all modules.

    An entry of 0, such as that of a token that never occurs, is not kept.

    Attributes:
        overlap: Jaccard index of the kept entries.
        conflict: Share of opposite signs among entries that both keep; one half by chance.
        overlap_by_chance: Overlap of as many entries at random positions of each factor:
            ``density / (2 - density)`` if no entry is 0.
    """

    density: float
    overlap: float
    conflict: float
    overlap_by_chance: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def run_weights(run: Run) -> tuple[list[ModuleFacts], list[Agreement]]:
    """Facts of both adapters, and how they agree.

    Raises:
        MissingError: The pair is not trained.
    """
    if not all(has_adapter(run, side) for side in PAIR):
        raise MissingError(
            f"There is no trained pair in {run.root}. `mergeforget train-pair` makes it."
        )
    over, under = (read_adapter(run.root / side, side) for side in PAIR)
    return [*module_facts(over), *module_facts(under)], agreement(over, under)


def module_facts(adapter: Adapter) -> list[ModuleFacts]:
    """Norm and effective rank of every module."""
    return [
        ModuleFacts(
            adapter.name, module, layer_of(module), kind_of(module), delta.rank, delta.norm(),
            effective_rank(singular_values(delta)),
        )
        for module, delta in adapter.deltas.items()
    ]  # fmt: skip


def singular_values(delta: LowRankDelta) -> NDArray[np.float64]:
    """(rank,) of ``scaling * b @ a``, in float64: those of the core ``R_b R_a^T``."""
    r_b: Array = np.asarray(np.linalg.qr(delta.b.astype(np.float64), mode="r"))
    r_a: Array = np.asarray(np.linalg.qr(delta.a.astype(np.float64).T, mode="r"))
    values: NDArray[np.float64] = np.linalg.svd(r_b @ r_a.T, compute_uv=False)
    return abs(delta.scaling) * values


def effective_rank(values: NDArray[np.float64]) -> float:
    """exp of the entropy of the singular values as shares; 0 for a zero change.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def agreement(
    over: Adapter, under: Adapter, densities: Sequence[float] = DENSITIES
) -> list[Agreement]:
    """Overlap and sign conflict of the trimmed factors, over the modules of both.

    Factors of different ranks have no entries in common; where all are so, there is no agreement.
    """
    # kept by both, by either, in conflict, and by both by chance
    counts = np.zeros((len(densities), 4))
    for module in sorted(over.deltas.keys() & under.deltas.keys()):
        one, two = over.deltas[module], under.deltas[module]
        if one.rank == two.rank:
            counts += _counts(one.a, two.a, densities) + _counts(one.b, two.b, densities)
    if not counts.any():
        return []
    return [
        Agreement(
            density, both / max(1, either), conflict / max(1, both),
            chance / max(1, both + either - chance),
        )
        for density, (both, either, conflict, chance) in zip(
            densities, counts.tolist(), strict=True
        )
    ]  # fmt: skip


def _counts(one: Array, two: Array, densities: Sequence[float]) -> NDArray[np.float64]:
    """(densities, 4) of one factor; equal magnitudes are kept lowest index first, as in a trim."""
    x, y = one.ravel(), two.ravel()
    place_x, place_y = _places(x), _places(y)
    opposite = (x > 0) != (y > 0)
    rows = []
    for density in densities:
        k = kept_count(density, x.size)
        kept_x, kept_y = (place_x < k) & (x != 0), (place_y < k) & (y != 0)
        count_x, count_y, both = int(kept_x.sum()), int(kept_y.sum()), kept_x & kept_y
        n, chance = int(both.sum()), count_x * count_y / x.size
        rows.append((n, count_x + count_y - n, (both & opposite).sum(), chance))
    return np.array(rows, np.float64)


def _places(x: Array) -> NDArray[np.int64]:
    """(n,) place of each entry when ordered from the largest magnitude."""
    order = np.argsort(-np.abs(x), kind="stable")
    places = np.empty(x.size, np.int64)
    places[order] = np.arange(x.size)
    return places
