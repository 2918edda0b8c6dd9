from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mergeforget.adapter import Adapter
from mergeforget.cli import main
from mergeforget.data.schema import Measured
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.files import read_json, read_jsonl
from mergeforget.recipe import SearchSpec
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.objective import Rank
from mergeforget.search.optuna_study import OptunaStudy
from mergeforget.search.split import SearchData

SPACE = ("--densities", "0.1:1.0:0.1", "--weights", "1,1;1,0.5")


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(tiny_run.root, tmp_path / "run")))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(model, whether it generated) of every measurement."""
    seen: list[tuple[str, bool]] = []
    measure, proxy = Evaluator.measure, Evaluator.measure_proxy

    def measuring(self: Evaluator, adapter: Adapter | None, label: str) -> dict[str, Measured]:
        seen.append((label, True))
        return measure(self, adapter, label)

    def counted(
        self: Evaluator, adapter: Adapter | None, label: str, data: SearchData
    ) -> dict[str, Measured]:
        seen.append((label, False))
        return proxy(self, adapter, label, data)

    monkeypatch.setattr(Evaluator, "measure", measuring)
    monkeypatch.setattr(Evaluator, "measure_proxy", counted)
    return seen


def call(run: Run, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["search", str(run.root), "--device", "cpu", *arguments], catch_exceptions=False
    )


def lines(run: Run) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(run.scores))


def generated(calls: list[tuple[str, bool]]) -> list[str]:
    return [name for name, full in calls if full and name not in ("base", "over", "under")]


def test_only_finalists_of_a_grid_generate_and_the_best_is_the_same(
    run: Run, tiny_run: Run, tmp_path: Path, calls: list[tuple[str, bool]]
) -> None:
    whole = Run(Path(shutil.copytree(tiny_run.root, tmp_path / "whole")))
    densities = ("--densities", "0.2,0.4,0.6,0.8,1.0")
    assert call(whole, *densities).exit_code == 0
    del calls[:]
    assert call(run, *densities, "--finalists", "2").exit_code == 0
    assert len(generated(calls)) == 2 and len(calls) == 3 + 5 + 2
    proxy, full = (read_json(r.search / "chosen.json") for r in (run, whole))
    assert proxy["name"] == full["name"]
    for part, scores in full["scores"].items():
        assert proxy["scores"][part] == pytest.approx(scores, rel=1e-5)
    assert (proxy["measured"], proxy["explored"]) == (2, 5)
    models = {row["model"] for row in read_jsonl(run.scores)}
    assert len(models) == 3 + 5  # the curves contain every density


@pytest.mark.parametrize("strategy", ["tpe", "nsga2"])
def test_a_killed_study_resumes_with_the_same_suggestions(
    run: Run, tiny_run: Run, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(Path(shutil.copytree(tiny_run.root, tmp_path / "whole")))
    arguments = (*SPACE, "--strategy", strategy, "--budget", "6", "--first", "0.52")
    assert call(whole, *arguments).exit_code == 0
    proxy, left = Evaluator.measure_proxy, [3]

    def killed(self: Evaluator, adapter: Adapter | None, label: str, data: SearchData) -> Any:
        if not left[0]:
            raise SystemExit(137)
        left[0] -= 1
        return proxy(self, adapter, label, data)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure_proxy", killed)
        assert call(run, *arguments).exit_code == 137
    assert call(run, *arguments).exit_code == 0
    assert lines(run) == lines(whole)
    chosen = read_json(run.search / "chosen.json")
    assert chosen == read_json(whole.search / "chosen.json")
    assert chosen["explored"] == 6 and 1 <= chosen["measured"] <= 2
    assert any("d0.50" in row["model"] for row in read_jsonl(run.scores))  # nearest to 0.52


def test_a_finalist_reuses_the_likelihoods_of_its_proxy_evaluation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 documents a proxy evaluation of the AUC has measured 4 members and 2 non-members."""
    read: list[tuple[str, int]] = []

    def noting(model: Any, ids: Any, **more: Any) -> Any:
        read.append((more["label"], len(ids)))
        return likelihoods(model, ids, **more)

    monkeypatch.setattr("mergeforget.evaluate.measure.likelihoods", noting)
    assert call(run, "--densities", "0.5", "--finalists", "1").exit_code == 0
    every = dict(read[:1])["base likelihood"]
    assert [n for label, n in read if label.startswith("ties")] == [6, every - 6]


def test_proxy_scores_equal_those_of_the_selection_split(run: Run) -> None:
    objective = ("--objective", "0.5*mia + 0.3*retain + 0.2*forget")
    assert call(run, "--densities", "0.5,1.0", "--finalists", "1", *objective).exit_code == 0
    explored = {s["metric"] + s["split"]: s["value"] for s in of_part(run, "choose")}
    assert call(run, "--densities", "0.5,1.0", *objective).exit_code == 0
    full = {s["metric"] + s["split"]: s["value"] for s in of_part(run, "choose")}
    assert len(explored) >= 5
    assert explored == pytest.approx({key: full[key] for key in explored}, rel=1e-5)


def of_part(run: Run, part: str) -> list[dict[str, Any]]:
    """Scores of the candidate that was no finalist at first."""
    chosen = read_json(run.search / "chosen.json")["name"]
    rows = [r for r in read_jsonl(run.scores) if r.get("part") == part and not r.get("task")]
    return [r for r in rows if r["model"].startswith("ties") and r["model"] != chosen]


def test_an_exhausted_space_ends_the_search(run: Run, calls: list[tuple[str, bool]]) -> None:
    arguments = ("--densities", "0.2,0.8", "--strategy", "tpe", "--budget", "50")
    assert call(run, *arguments).exit_code == 0
    explored = [name for name, full in calls if not full]
    assert sorted(explored) == ["ties-factors-d0.20", "ties-factors-d0.80"]


def test_studies_find_the_maximum(tmp_path: Path) -> None:
    spec = SearchSpec(densities="0.01:1.0:0.01", strategy="tpe")  # type: ignore[arg-type]
    study = OptunaStudy(spec, tmp_path / "journal", "hill")
    best = 0.0
    for _ in range(30):
        trial, candidate = study.suggest()
        assert candidate.density is not None
        value = 1 - abs(candidate.density - 0.37)
        best = max(best, value)
        study.tell(trial, Rank(0.0, value, 0.0, 0.0), [Score("nll", "all", 1.0, "lower", 1)])
    assert best > 0.95  # 30 of 100 points


def test_two_workers_share_a_study(tmp_path: Path) -> None:
    spec = SearchSpec(strategy="tpe")
    one, other = (OptunaStudy(spec, tmp_path / "journal", "shared") for _ in range(2))
    trial, candidate = one.suggest()
    one.tell(trial, Rank(0.0, 0.5, 0.0, 0.0), [Score("nll", "all", 1.0, "lower", 1)])
    (seen,) = other.finished()
    assert other.candidate_of(seen) == candidate


def test_a_missing_optuna_is_reported_with_the_install_command(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Exception, match=r"pip install 'mergeforget\[search\]'"):
        OptunaStudy(SearchSpec(strategy="tpe"), run.search / "journal", "x")


def test_a_storage_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Cannot open the study in nonsense://"):
        OptunaStudy(SearchSpec(strategy="tpe"), "nonsense://host/db", "x")
