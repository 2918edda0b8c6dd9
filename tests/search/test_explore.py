from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.cli import main
from mergeforget.data.schema import Measured
from mergeforget.errors import NumericError
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.files import read_json, read_jsonl
from mergeforget.recipe import SearchSpec
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.search.budget import parse_budget
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.explore import Explorer
from mergeforget.search.grid import grid
from mergeforget.search.objective import Rank, parse_objective
from mergeforget.search.optuna_study import OptunaStudy
from mergeforget.search.split import SearchData
from mergeforget.search.store import Store

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


@pytest.mark.parametrize("shared", [False, True])
def test_again_measures_every_candidate_of_a_study_again(
    run: Run, tmp_path: Path, calls: list[tuple[str, bool]], shared: bool
) -> None:
    storage = ("--storage", f"sqlite:///{tmp_path / 'study.db'}") if shared else ()
    explored = []
    for options in ((), ("--again",), ()):
        del calls[:]
        assert call(run, "--strategy", "tpe", *storage, *options).exit_code == 0
        explored.append(sorted(name for name, full in calls if not full))
    names = [f"ties-factors-d0.{i}0" for i in (2, 5, 8)]
    assert explored == [names, names, []]


def test_a_renewed_study_is_joined_by_workers(tmp_path: Path) -> None:
    def opened(renew: bool = False) -> OptunaStudy:
        spec = SearchSpec(strategy="tpe")
        return OptunaStudy(spec, tmp_path / "journal", "shared", renew=renew)

    def measure(study: OptunaStudy) -> None:
        trial, _ = study.suggest()
        study.tell(trial, Rank(0.0, 0.5, 0.0, 0.0), [Score("nll", "all", 1.0, "lower", 1)])

    for _ in range(2):
        measure(opened())
        assert len(opened().finished()) == 1
        assert not opened(renew=True).finished()
        assert not opened().finished()


class Exploration:
    """An explorer of two small adapters, whose proxy evaluations are made up.

    Attributes:
        asked: The evaluated candidates, in order.
        failing: Parts of the names of candidates whose loss is NaN.
    """

    def __init__(self, folder: Path, strategy: str, failing: Sequence[str]) -> None:
        self.asked: list[str] = []
        self.folder, self.failing = folder, failing
        self.spec = SearchSpec(strategy=strategy, densities=[0.2, 0.4, 0.6, 0.8])  # type: ignore[arg-type]

    def measure_proxy(self, adapter: Adapter, name: str, data: object) -> list[Score]:
        self.asked.append(name)
        if any(part in name for part in self.failing):
            raise NumericError("a loss is NaN")
        return [
            Score("mia_auc", "mia", 0.5, "nearer", 10),
            Score("greedy_match", "forget", 0.1, "lower", 10),
            Score("greedy_match", "retain", 0.9, "higher", 10),
        ]

    def explore(self, budget: str | None = None) -> list[str]:
        """Return the names of the explored candidates."""
        store = Store(Run(self.folder / "run"))
        store.scores["base"] = []
        draw = np.random.default_rng(0)
        pair = [
            Adapter(
                side,
                {"model.layers.0.q": LowRankDelta(draw.normal(size=(2, 6)).astype("f4"),
                                                  draw.normal(size=(5, 2)).astype("f4"), 1.0)},
                {"base_model_name_or_path": "m"},
            )
            for side in ("over", "under")
        ]  # fmt: skip
        evaluator: Any = lambda: self  # noqa: E731
        guess: Any = lambda *_: 0.6  # noqa: E731
        explorer = Explorer(self.spec, parse_objective("mia"), store, evaluator, pair, guess)
        limit, candidates = parse_budget(budget), grid(self.spec)
        if self.spec.strategy == "grid":
            return [c.name for c in explorer.grid(candidates, limit)]
        if self.spec.strategy == "refine":
            return [c.name for c in explorer.refine(candidates, limit)]
        study = OptunaStudy(self.spec, self.folder / "journal", "x")
        return [c.name for c in explorer.study(study, limit)]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explorer, "_data", lambda self: None)
    monkeypatch.setattr(
        "mergeforget.search.explore.worst_by", lambda _, measured, keeping: measured
    )


STRATEGIES = ["grid", "refine", "tpe", "nsga2"]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_failed_candidates_are_evaluated_once_and_the_exploration_ends(
    tmp_path: Path, strategy: str
) -> None:
    exploration = Exploration(tmp_path, strategy, ["ties"])
    assert exploration.explore() == []
    assert 3 <= len(exploration.asked) == len(set(exploration.asked)) <= 4


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("strategy", ["tpe", "nsga2"])
def test_a_resumed_study_does_not_evaluate_failed_candidates_again(
    tmp_path: Path, strategy: str
) -> None:
    exploration = Exploration(tmp_path, strategy, ["d0.20", "d0.60"])
    found = exploration.explore()
    assert set(found) <= set(exploration.explore())
    assert len(exploration.asked) == len(set(exploration.asked)) >= 3


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("budget", "evaluations"), [("2", 2), ("0.000001s", 1)])
def test_failed_candidates_count_in_the_budget(
    tmp_path: Path, strategy: str, budget: str, evaluations: int
) -> None:
    exploration = Exploration(tmp_path, strategy, ["ties"])
    assert exploration.explore(budget) == []
    assert len(exploration.asked) == evaluations


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_candidate_whose_merge_overflows_is_skipped(tmp_path: Path, strategy: str) -> None:
    exploration = Exploration(tmp_path, strategy, [])
    spaces: Any = {"densities": [0.5], "spaces": ["delta"], "weights": [[1, 1], [3e38, 3e38]]}
    exploration.spec = exploration.spec.model_copy(update=spaces)
    assert exploration.explore() == ["ties-delta-d0.50"]
    assert exploration.asked == ["ties-delta-d0.50"]


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
