"""Curves of scores against density, and the prediction of the balanced density."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_run import adapter, write_pair
from sklearn.metrics import roc_auc_score

from mergeforget.adapter import Adapter
from mergeforget.analysis.density import (
    curves_of,
    first_candidate,
    predict,
    run_density,
    run_prediction,
)
from mergeforget.analysis.evidence import (
    MissingError,
    read_candidates,
    read_chosen,
    run_membership,
    run_scores,
)
from mergeforget.candidate import Candidate
from mergeforget.files import append_jsonl
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.prediction import zero_of
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.search.grid import layer_groups, with_densities


def test_candidates_that_differ_in_density_alone_share_a_curve() -> None:
    candidates = {c.name: c for c in (Candidate("ties", 0.7), Candidate("ties", 0.3))}
    other = Candidate("ties", 0.3, weights=(1.0, 0.5))
    scores = {
        name: [Score("mia_auc", "mia", value, "nearer", 10)]
        for name, value in zip([*candidates, other.name], (0.4, 0.6, 0.8), strict=True)
    }
    curves = curves_of(scores, candidates | {other.name: other})
    assert [(c.family, [(p.density, p.value) for p in c.points]) for c in curves] == [
        ("ties factors", [(0.3, 0.6), (0.7, 0.4)]),
        ("ties factors weights 1:0.5", [(0.3, 0.8)]),
    ]


def test_family_name_contains_every_setting_except_the_density() -> None:
    one = Candidate("della", 0.5, space="delta", rank=8, seed=3, arguments={"epsilon": 0.1})
    assert one.family == "della delta rank 8 seed 3 epsilon=0.1"
    assert one.name == "della-delta-d0.50-r8-s3-epsilon=0.1" and one.densities == "0.50"


def test_densities_by_layer_are_one_family() -> None:
    low, high = (
        Candidate(
            "ties", 0.4, by_module={"density": [{"filter": "0.", "value": v}, {"value": 0.5}]}
        )
        for v in (0.25, 0.3)
    )
    assert low.family == high.family == "ties factors by layer" and low.name != high.name
    assert (low.densities, high.densities) == ("0.25, 0.50", "0.30, 0.50")
    weights = Candidate("ties", 0.4, by_module={"weights": [[0, 1], 1]})
    assert weights.family.startswith("ties factors by module ") and weights.densities == "0.40"


def test_each_split_has_its_own_curve(finished: Run) -> None:
    found = run_density(finished)
    auc = found.of("mia_auc", "mia")
    assert {(c.family, c.part) for c in auc} == {
        (f"{method} factors", part)
        for method in ("ties", "magnitude_prune")
        for part in ("choose", "report")
    }
    assert all(len(c.points) == 10 for c in auc)
    assert found.chosen == "ties-factors-d0.70"
    assert found.reference("over", "mia_auc", "mia", "", ["report"]) is not None


def test_a_figure_measured_again_replaces_the_old_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for value in (0.1, 0.2):
        score = Score("mia_auc", "mia", value, "nearer", 10)
        append_jsonl(run.scores, [{"model": "over", **score.to_dict()}])
    assert [s.value for s in run_scores(run)["over"]] == [0.2]


def test_a_candidate_without_a_folder_is_derived_from_its_name(tmp_path: Path) -> None:
    names = ["over", "ties-factors-d0.70", "magnitude_prune-delta-d0.35-r8"]
    found = read_candidates(Run(tmp_path), names)
    assert {n: (c.method, c.space, c.density) for n, c in found.items()} == {
        names[1]: ("ties", "factors", 0.7),
        names[2]: ("magnitude_prune", "delta", 0.35),
    }


def test_error_without_scores_names_the_search_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="mergeforget search"):
        run_scores(Run(tmp_path))


def test_chosen_candidate_is_empty_before_a_search(tmp_path: Path) -> None:
    assert read_chosen(Run(tmp_path)) is None


def test_auc_of_the_distributions_equals_scikit_learns(finished: Run) -> None:
    found = run_membership(finished)
    assert [x.model for x in found] == ["base", "over", "under", "ties-factors-d0.70"]
    for x in found:
        labels = [1] * len(x.members) + [0] * len(x.nonmembers)
        expected = roc_auc_score(labels, [*-x.members, *-x.nonmembers])
        assert x.auc == pytest.approx(expected, abs=1e-12)


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
