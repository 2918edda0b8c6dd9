"""The prediction of the balanced density."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from finished_run import adapter, write_pair

from mergeforget.adapter import Adapter
from mergeforget.analysis.evidence import MissingError
from mergeforget.analysis.selection import first_candidate, predict, run_prediction
from mergeforget.candidate import Candidate
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.prediction import zero_of
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.search.grid import layer_groups, with_densities

OVER, UNDER = adapter("over", 1), adapter("under", 2)


def dense(x: Adapter) -> np.ndarray:
    return np.concatenate([x.deltas[m].dense().astype(np.float64).ravel() for m in OVER.deltas])


def test_a_linear_gap_in_the_plane_of_the_pair_is_predicted_exactly() -> None:
    """gap(v) = -1 + <w, v> with w a combination of over and under, computed densely."""
    o, u = dense(OVER), dense(UNDER)
    w = 2e-5 * o + 1e-5 * u
    gaps = {"base": -1.0, "over": -1.0 + float(w @ o), "under": -1.0 + float(w @ u)}
    grid = [0.1, 0.4, 0.7, 1.0]
    found = predict(OVER, UNDER, gaps, Candidate("ties"), grid)
    merged = [merge_adapters([OVER, UNDER], Candidate("ties", d)).adapter for d in grid]
    expected = [-1.0 + float(w @ dense(m)) for m in merged]
    np.testing.assert_allclose(found.gaps, expected, atol=1e-5)


def test_the_prediction_equals_the_measured_gaps_of_over_and_under() -> None:
    """A merge that keeps one side whole has that side's measured gap."""
    gaps = {"base": -2.0, "over": 1.5, "under": -0.5}
    for side, weights in (("over", (1.0, 0.0)), ("under", (0.0, 1.0))):
        candidate = Candidate("magnitude_prune", weights=weights, space="delta")
        found = predict(OVER, UNDER, gaps, candidate, [1.0])
        assert found.gaps[0] == pytest.approx(gaps[side], abs=1e-4)


def test_parallel_adapters_do_not_divide_by_zero() -> None:
    found = predict(OVER, OVER, {"base": -1.0, "over": 1.0, "under": 1.0}, Candidate("ties"))
    assert np.isfinite(found.gaps).all() and found.gaps[-1] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([-1.0, 1.0, 3.0], (0.5, True)),
        ([-1.0, 1.0, -1.0], (1.5, True)),  # of two crossings, the larger density
        ([3.0, 1.0, 2.0], (1.0, False)),
        ([-1.0, 0.0, 0.0], (2.0, True)),
        ([0.0, 1.0, -1.0], (1.5, True)),  # a point that is exactly 0 and a crossing
    ],
)
def test_crossing_of_a_curve_with_zero_is_interpolated(
    y: list[float], expected: tuple[float, bool]
) -> None:
    assert zero_of(np.arange(3.0), np.array(y)) == expected


def test_the_prediction_includes_measured_gaps_and_the_choice(finished: Run) -> None:
    found = run_prediction(finished)
    assert found.family == "ties factors" and found.chosen == 0.7
    assert [d for d, _ in found.found] == [0.7]
    assert "The search chose 0.7" in found.sentence
    told = replace(found, began=0.62).sentence
    assert "The search started at 0.62, predicted from the selection split, and chose 0.7" in told


def test_error_for_an_unmeasured_pair_names_the_evaluate_command(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    run = Run(tmp_path_factory.mktemp("young"))
    save_recipe(load_recipe("zjuklab"), run.recipe)
    write_pair(run)
    with pytest.raises(MissingError, match="mergeforget evaluate"):
        run_prediction(run)


def test_a_method_without_density_is_not_predicted() -> None:
    recipe = load_recipe("zjuklab")
    for methods, density in ((["linear"], None), (["linear", "ties"], 0.5)):
        changed = change(recipe, search={"methods": methods, "densities": [0.5]})
        assert first_candidate(changed).density == density


def test_densities_by_layer_do_not_replace_those_of_the_grid() -> None:
    """A candidate of ``search --groups`` has densities by layer."""
    gaps = {"base": -1.0, "over": 0.8, "under": -0.3}
    plain = predict(OVER, UNDER, gaps, Candidate("ties", 0.5))
    groups = layer_groups(OVER.deltas, 2)
    by_layer = predict(
        OVER, UNDER, gaps, with_densities(Candidate("ties", 0.5), groups, [0.3, 0.7])
    )
    np.testing.assert_array_equal(by_layer.gaps, plain.gaps)
    assert len(set(by_layer.gaps.tolist())) > 2 and by_layer.sentence == plain.sentence
