"""Angles from rank-sized matrices against the dense computation in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_run import CONFIG, adapter, blend, write_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.analysis.angles import (
    CORRECTION,
    FORWARD,
    OVER_UNDER,
    OVERALL,
    angle,
    change_angles,
    groups_of,
    kind_of,
    layer_of,
    pair_angles,
    run_angles,
    training_angles,
)
from mergeforget.analysis.evidence import MissingError
from mergeforget.run import Run


def dense(x: Adapter, modules: list[str]) -> np.ndarray:
    """Every module's change, laid end to end, float64."""
    parts = [
        d.scaling * d.b.astype(np.float64) @ d.a.astype(np.float64)
        for d in (x.deltas[m] for m in modules)
    ]
    return np.concatenate([p.ravel() for p in parts])


def dense_angle(x: np.ndarray, y: np.ndarray) -> float:
    """Degrees, by Kahan's formula, which is exact for small angles as well."""
    u, v = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return math.degrees(2 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_angles_of_a_training_match_the_dense_computation(share: float) -> None:
    end = adapter("over", 2)
    state = blend(adapter("over", 1), end, share)
    found = training_angles("over", 10, 1.0, state, end)
    for group, name, rows in groups_of(sorted(end.deltas)):
        modules = [sorted(end.deltas)[i] for i in rows]
        s, e = dense(state, modules), dense(end, modules)
        expected = {
            FORWARD: dense_angle(s, e - s), OVERALL: dense_angle(s, e),
            CORRECTION: dense_angle(e - s, e),
        }  # fmt: skip
        mine = {
            a.vectors: a.degrees
            for a in found
            if (a.group, a.name, a.space) == (group, name, "delta")
        }
        assert mine == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", ["a", "b"])
def test_angles_of_a_factor_match_those_of_the_flattened_entries(factor: str) -> None:
    end = adapter("over", 2)
    state = blend(adapter("over", 1), end, 0.4)
    s, e = (
        np.concatenate([getattr(d, factor).astype(np.float64).ravel() for d in x.deltas.values()])
        for x in (state, end)
    )
    found = training_angles("over", 10, 1.0, state, end)
    mine = {a.vectors: a.degrees for a in found if (a.group, a.space) == ("all", factor)}
    expected = {
        FORWARD: dense_angle(s, e - s), OVERALL: dense_angle(s, e),
        CORRECTION: dense_angle(e - s, e),
    }  # fmt: skip
    assert mine == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seeds=st.tuples(st.integers(0, 999), st.integers(1000, 1999)), scale=st.floats(0.01, 100))
def test_angle_of_the_pair_matches_dense_and_ignores_length(
    seeds: tuple[int, int], scale: float
) -> None:
    over, under = adapter("over", seeds[0]), adapter("under", seeds[1], scale=scale)
    modules = sorted(over.deltas)
    (whole,) = [a for a in pair_angles(over, under) if (a.group, a.space) == ("all", "delta")]
    expected = dense_angle(dense(over, modules), dense(under, modules))
    assert whole.vectors == OVER_UNDER
    assert whole.degrees == pytest.approx(expected, abs=1e-6)


def test_angle_matches_a_hand_calculation() -> None:
    """s = (1, 0), e = (1, 1): s and e - s are at right angles, e halves them."""
    ss, se, ee = 1.0, 1.0, 2.0
    expected = {FORWARD: 90, OVERALL: 45, CORRECTION: 45}
    assert change_angles((ss, se, ee)) == pytest.approx(expected)


def test_reversing_a_change_gives_an_obtuse_angle() -> None:
    """s = (2, 0), e = (1, 0): what follows takes half of it back."""
    assert change_angles((4.0, 2.0, 1.0)) == {FORWARD: 180.0, OVERALL: 0.0, CORRECTION: 180.0}


def test_a_zero_change_has_no_angle() -> None:
    assert angle(0.0, 1.0, 0.0) is None
    end = adapter("over", 2)
    at_end = {a.vectors: a.degrees for a in training_angles("over", 1, 1.0, end, end)[:3]}
    assert at_end[FORWARD] is None and at_end[CORRECTION] is None
    assert at_end[OVERALL] == pytest.approx(0, abs=1e-6)


def test_a_module_that_only_one_changes_counts_as_zero_in_the_other() -> None:
    over, under = adapter("over", 1), adapter("under", 1)
    first = sorted(over.deltas)[0]
    fewer = replace(under, deltas={m: d for m, d in under.deltas.items() if m != first})
    (whole,) = [a for a in pair_angles(over, fewer) if (a.group, a.space) == ("all", "delta")]
    norms = {m: d.norm() for m, d in over.deltas.items()}
    share = 1 - norms[first] ** 2 / sum(n * n for n in norms.values())
    assert whole.degrees == pytest.approx(math.degrees(math.acos(math.sqrt(share))), abs=1e-6)


def test_factors_of_different_rank_have_no_separate_angle() -> None:
    over, under = adapter("over", 1), adapter("under", 2)
    module = sorted(over.deltas)[0]
    d = under.deltas[module]
    wider = LowRankDelta(np.vstack([d.a, d.a]), np.hstack([d.b, d.b]), d.scaling)
    other = replace(under, deltas=under.deltas | {module: wider}, config=dict(CONFIG))
    assert {a.space for a in pair_angles(over, other)} == {"delta"}


def test_names_of_layers_and_kinds() -> None:
    assert layer_of("model.layers.12.mlp.up_proj") == 12
    assert layer_of("transformer.h.3.attn.c_attn") == 3
    assert layer_of("lm_head") is None
    assert kind_of("model.layers.12.mlp.up_proj") == "up_proj" and kind_of("lm_head") == "lm_head"


def test_error_for_a_run_without_adapters_names_the_training_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="train-pair"):
        run_angles(Run(tmp_path))


def test_a_run_without_history_still_has_angles_by_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_pair(run)
    found = [a for a in run_angles(run) if a.model == "over" and a.group == "all"]
    assert {a.space for a in found} == {"delta", "a", "b"}
    rows = [a for a in found if a.space == "delta"]
    assert [a.step for a in rows[::3]] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert all(a.epoch is None for a in rows)


def test_the_pair_is_compared_at_equal_epochs(finished: Run) -> None:
    steps = [
        a.step
        for a in run_angles(finished)
        if (a.model, a.group, a.space) == ("pair", "all", "delta")
    ]
    assert steps == [None, 5, 10, 15, 20, 25, 30, 35, 40]
