"""Several candidates answer in one batch, and a search finds what it finds one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mergeforget.adapter import Adapter
from mergeforget.cli import main
from mergeforget.evaluate.cache import EvaluationCache
from mergeforget.files import read_json, read_jsonl
from mergeforget.merge.multi_adapter import UnfitError
from mergeforget.recipe import change, load_recipe
from mergeforget.run import Run
from mergeforget.search import evaluator as module
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, search
from mergeforget.search.evaluator import Evaluator

BAD = "ties-factors-d0.50"


def searched(run: Run, together: int | None) -> Run:
    spec = change(load_recipe(run.recipe), search={"together": together}).search
    search(run, spec, Options(SearchBudget(), device="cpu"))
    return run


def copied(run: Run, folder: Path) -> Run:
    return Run(Path(shutil.copytree(run.root, folder)))


def found(run: Run) -> dict[str, Any]:
    """Scores, answers, losses and the choice."""
    files = {path.name: read_jsonl(path) for path in run.answers.glob("*.jsonl")}
    scores = sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(run.scores))
    return files | {"scores": scores, "chosen": read_json(run.search / "chosen.json")}


@pytest.fixture(scope="module")
def alone(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One after the other; not to be changed."""
    return searched(copied(tiny_run, tmp_path_factory.mktemp("alone") / "run"), 1)


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    return copied(tiny_run, tmp_path / "run")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Who answered side by side, each time."""
    seen: list[list[str]] = []
    answer = Evaluator.answer

    def noting(self: Evaluator, adapters: Any) -> None:
        seen.append(list(adapters))
        answer(self, adapters)

    monkeypatch.setattr(Evaluator, "answer", noting)
    return seen


@pytest.mark.parametrize(
    ("together", "sizes"),
    [(2, [2, 2]), (None, [3, 3])],  # 16 prompts: the 48 rows of a batch have room for 3
)
def test_batched_scores_equal_sequential_ones(
    run: Run, alone: Run, batches: list[list[str]], together: int | None, sizes: list[int]
) -> None:
    assert found(searched(run, together)) == found(alone)
    assert [len(names) for names in batches] == sizes
    assert batches[0][:2] == ["base", "over"]


def test_a_search_killed_within_a_batch_resumes_without_repeated_questions(
    run: Run, alone: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, seen = EvaluationCache.save_completion, 0

    def counted(self: EvaluationCache, *more: Any) -> None:
        nonlocal seen
        seen += self.path is not None  # a proxy evaluation has no answers
        keep(self, *more)

    def killed(self: EvaluationCache, *more: Any) -> None:
        counted(self, *more)
        if seen == 16 * 3 + 7:  # over and under are measured, the candidates are not
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EvaluationCache, "save_completion", killed)
        searched(run, 3)
    monkeypatch.setattr(EvaluationCache, "save_completion", counted)
    assert found(searched(run, 3)) == found(alone)
    assert seen == 16 * 6


def test_a_candidate_with_nan_does_not_affect_the_others(
    run: Run, alone: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measure, answers = Evaluator._measure, Evaluator.answer

    def spoiled(adapter: Adapter | None, label: str) -> Adapter | None:
        if adapter is not None and label == BAD:
            next(iter(adapter.deltas.values())).b[:] = np.nan
        return adapter

    def measuring(self: Evaluator, adapter: Adapter | None, label: str, *more: Any) -> Any:
        return measure(self, spoiled(adapter, label), label, *more)

    def answering(self: Evaluator, adapters: dict[str, Adapter | None]) -> None:
        answers(self, {label: spoiled(adapter, label) for label, adapter in adapters.items()})

    monkeypatch.setattr(Evaluator, "_measure", measuring)
    monkeypatch.setattr(Evaluator, "answer", answering)
    mine, theirs = found(searched(run, 3)), found(alone)
    assert f"Skipped {BAD}: The factors of" in capsys.readouterr().err
    assert not (run.candidates / BAD).exists()
    assert mine["chosen"]["measured"] == 2
    assert mine["scores"] == [row for row in theirs["scores"] if BAD not in row]
    assert all(mine[name] == theirs[name] for name in mine.keys() - {"scores", "chosen"})


def test_a_model_without_batching_answers_one_candidate_at_a_time(
    run: Run, alone: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise UnfitError("its rows cannot be separated.")

    monkeypatch.setattr(module, "generate_together", refused)
    assert found(searched(run, 3)) == found(alone)
    told = capsys.readouterr().err
    assert (
        told.count("Evaluating candidates one after the other: its rows cannot be separated") == 1
    )


def test_finalists_are_evaluated_in_batches_of_the_given_size(
    run: Run, batches: list[list[str]]
) -> None:
    """The best two by proxy score; then selection ends, or continues with the third."""
    options = ["--together", "2", "--strategy", "refine", "--objective", "0.5*mia + 0.5*retain"]
    command = ["search", str(run.root), "--device", "cpu", *options]
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
    finalists = [names for names in batches if "base" not in names and "under" not in names]
    assert len(finalists) == 1 and len(finalists[0]) == 2
    assert read_json(run.search / "chosen.json")["measured"] in (2, 3)
