"""Angles between the weight changes of a training, and between the over and the under adapter.

A change vector is the concatenation of every module's ``scaling * b @ a``. With the state ``s`` at
a step and the state ``e`` at the end, the three change vectors 0 to s, s to end and 0 to end are s,
e - s and e, so all their norms and angles follow from three inner products per module: <s, s>,
<s, e> and <e, e>. These are computed from rank-sized matrices; no (out, in) matrix is formed.

The factors A and B have separate angles, measured from zero as in a merge in factor space. B is
initialised with zeros, but A with random values, which are part of "0 to s".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.adapter import Adapter, LowRankDelta, read_adapter
from mergeforget.analysis.evidence import MissingError, has_adapter, read_snapshots
from mergeforget.run import PAIR, Run

Grams = NDArray[np.float64]  # (modules, 3): <x, x>, <x, y>, <y, y>
FORWARD, OVERALL, CORRECTION = "0 to s, s to end", "0 to s, 0 to end", "s to end, 0 to end"
OVER_UNDER = "over, under"
NEAR_EPOCHS = 0.25  # maximum distance of snapshots of over and under that are compared
ZERO = 1e-14  # relative to the larger square; smaller differences are rounding


@dataclass(frozen=True)
class Angle:
    """One angle.

    Attributes:
        model: ``over``, ``under`` or ``pair``.
        vectors: The two change vectors.
        step: The step s; None for the finished adapters.
        epoch: Epoch at that step.
        space: ``delta`` (change of the weights), or ``a`` or ``b`` (a LoRA factor).
        group: ``all``, ``layer``, ``kind`` or ``module``.
        name: Number of the layer, kind (``q_proj``) or module; empty for all.
        degrees: Angle in [0, 180]; None if one of the vectors is zero.
    """

    model: str
    vectors: str
    step: int | None
    epoch: float | None
    space: str
    group: str
    name: str
    degrees: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def run_angles(run: Run) -> list[Angle]:
    """Compute all angles of a run: during training, and between its two adapters.

    Raises:
        MissingError: There is no trained adapter.
    """
    ends = {side: read_adapter(run.root / side, side) for side in PAIR if has_adapter(run, side)}
    if not ends:
        raise MissingError(
            f"There is no trained adapter in {run.root}. `mergeforget train-pair` trains the pair."
        )
    rows = []
    for side, end in ends.items():
        for snapshot in read_snapshots(run, side):
            state = read_adapter(snapshot.folder, f"{side} at step {snapshot.step}")
            rows += training_angles(side, snapshot.step, snapshot.epoch, state, end)
    if len(ends) == len(PAIR):
        rows += pair_angles(ends["over"], ends["under"])
        rows += _pair_over_training(run)
    return rows


def training_angles(
    model: str, step: int, epoch: float | None, state: Adapter, end: Adapter
) -> list[Angle]:
    """Return the three angles at one step for each space: total, per layer, kind and module."""
    modules = sorted(state.deltas.keys() | end.deltas.keys())
    return [
        Angle(model, vectors, step, epoch, space, group, name, degrees)
        for space, grams in grams_by_space(state, end, modules).items()
        for group, name, rows in groups_of(modules)
        for vectors, degrees in change_angles(grams[rows].sum(axis=0)).items()
    ]


def pair_angles(
    over: Adapter, under: Adapter, step: int | None = None, epoch: float | None = None
) -> list[Angle]:
    """Return the angles between two adapters, for their changes and for their factors A and B."""
    modules = sorted(over.deltas.keys() | under.deltas.keys())
    return [
        Angle("pair", OVER_UNDER, step, epoch, space, group, name, angle(xx, yy, xy))
        for space, grams in grams_by_space(over, under, modules).items()
        for group, name, rows in groups_of(modules)
        for xx, xy, yy in [grams[rows].sum(axis=0)]
    ]


def grams_by_space(x: Adapter, y: Adapter, modules: list[str]) -> dict[str, Grams]:
    """Return inner products in delta space, and of A and B if the ranks are equal."""
    spaces: dict[str, Grams] = {"delta": delta_grams(x, y, modules)}
    if all(_same_rank(x, y, m) for m in modules):
        spaces["a"] = factor_grams(x, y, modules, lambda d: d.a)
        spaces["b"] = factor_grams(x, y, modules, lambda d: d.b)
    return spaces


def delta_grams(x: Adapter, y: Adapter, modules: list[str]) -> Grams:
    """Return inner products of the changes of each module, (modules, 3): <x, x>, <x, y>, <y, y>.

    A module that an adapter does not contain counts as a zero change.
    """
    return np.array(
        [_gram(x.deltas.get(m), y.deltas.get(m), LowRankDelta.inner) for m in modules], np.float64
    ).reshape(len(modules), 3)


def factor_grams(
    x: Adapter, y: Adapter, modules: list[str], factor: Callable[[LowRankDelta], Any]
) -> Grams:
    """Return the inner products of one LoRA factor of each module, (modules, 3)."""

    def inner(one: LowRankDelta, two: LowRankDelta) -> float:
        return float(np.vdot(factor(one).astype(np.float64), factor(two).astype(np.float64)))

    return np.array(
        [_gram(x.deltas.get(m), y.deltas.get(m), inner) for m in modules], np.float64
    ).reshape(len(modules), 3)


def change_angles(gram: Iterable[float]) -> dict[str, float | None]:
    """Return the angles between 0 to s, s to end and 0 to end, in degrees.

    Args:
        gram: <s, s>, <s, e>, <e, e>.

    Source: ZJUKLAB, arXiv:2503.21088, figure 4.
    """
    ss, se, ee = gram
    rest = ss - 2 * se + ee  # |e - s|^2
    if rest <= ZERO * max(ss, ee):
        rest = 0.0
    return {
        FORWARD: angle(ss, rest, se - ss),
        OVERALL: angle(ss, ee, se),
        CORRECTION: angle(rest, ee, ee - se),
    }


def angle(xx: float, yy: float, xy: float) -> float | None:
    """Return the angle in degrees from <x, x>, <y, y> and <x, y>; None for a zero vector."""
    if xx <= 0 or yy <= 0:
        return None
    return math.degrees(math.acos(max(-1.0, min(1.0, xy / math.sqrt(xx * yy)))))


def groups_of(modules: list[str]) -> list[tuple[str, str, list[int]]]:
    """Return (group, name, rows) for all modules, then for each layer, kind and module."""
    layers: dict[str, list[int]] = {}
    kinds: dict[str, list[int]] = {}
    for row, module in enumerate(modules):
        if (layer := layer_of(module)) is not None:
            layers.setdefault(str(layer), []).append(row)
        kinds.setdefault(kind_of(module), []).append(row)
    by_number = sorted(layers.items(), key=lambda item: int(item[0]))
    return [
        ("all", "", list(range(len(modules)))),
        *(("layer", name, rows) for name, rows in by_number),
        *(("kind", name, rows) for name, rows in sorted(kinds.items())),
        *(("module", module, [row]) for row, module in enumerate(modules)),
    ]


def layer_of(module: str) -> int | None:
    """``model.layers.3.mlp.up_proj`` -> 3; None outside the layers."""
    match = re.search(r"\.(\d+)\.", module)
    return int(match[1]) if match else None


def kind_of(module: str) -> str:
    """``model.layers.3.mlp.up_proj`` -> ``up_proj``."""
    return module.rsplit(".", 1)[-1]


def _pair_over_training(run: Run) -> list[Angle]:
    """Return the angles between over and under at each snapshot with a counterpart in epoch.

    The two may have different batch sizes, so their snapshots need not have the same epoch.
    """
    unders = [s for s in read_snapshots(run, "under") if s.epoch is not None]
    rows = []
    for snapshot in read_snapshots(run, "over"):
        if (epoch := snapshot.epoch) is None or not unders:
            continue
        other = min(unders, key=lambda s: abs((s.epoch or 0.0) - epoch))
        if abs((other.epoch or 0.0) - epoch) <= NEAR_EPOCHS:
            over, under = read_adapter(snapshot.folder), read_adapter(other.folder)
            rows += pair_angles(over, under, snapshot.step, epoch)
    return rows


def _gram(
    x: LowRankDelta | None, y: LowRankDelta | None, inner: Callable[[Any, Any], float]
) -> tuple[float, float, float]:
    xx = inner(x, x) if x else 0.0
    yy = inner(y, y) if y else 0.0
    return xx, (inner(x, y) if x and y else 0.0), yy


def _same_rank(x: Adapter, y: Adapter, module: str) -> bool:
    one, two = x.deltas.get(module), y.deltas.get(module)
    return one is None or two is None or one.rank == two.rank
