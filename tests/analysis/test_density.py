"""Curves of scores against density."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from mergeforget.analysis.density import curves_of, run_density
from mergeforget.analysis.evidence import (
    MissingError,
    read_candidates,
    read_chosen,
    run_membership,
    run_scores,
)
from mergeforget.candidate import Candidate
from mergeforget.files import append_jsonl
from mergeforget.run import Run
from mergeforget.score import Score


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
