from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from peft import PeftModel

from mergeforget.adapter import Adapter
from mergeforget.analysis.report import write_report
from mergeforget.candidate import Candidate
from mergeforget.cli import main
from mergeforget.data.schema import Measured
from mergeforget.errors import NumericError
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score, find, read_scores
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, search
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.split import BY_ANSWERS, load_data
from mergeforget.search.store import Store

NAMES = {f"ties-factors-d{density}" for density in ("0.20", "0.50", "0.80")}


@pytest.fixture(scope="module")
def finished(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with a whole search, which no test writes to."""
    run = Run(Path(shutil.copytree(tiny_run.root, tmp_path_factory.mktemp("finished") / "run")))
    search(run, load_recipe(run.recipe).search, options())
    return run


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(tiny_run.root, tmp_path / "run")))


@pytest.fixture
def searched(finished: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(finished.root, tmp_path / "searched")))


def options(budget: SearchBudget | None = None, first: float | None = None) -> Options:
    return Options(budget or SearchBudget(), device="cpu", first=first)


def call(run: Run, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["search", str(run.root), "--device", "cpu", *arguments], catch_exceptions=False
    )


def lines(run: Run) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(run.scores))


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were measured, in order."""
    seen: list[str] = []
    measure = Evaluator.measure

    def noting(self: Evaluator, adapter: Adapter | None, label: str) -> dict[str, Measured]:
        seen.append(label)
        return measure(self, adapter, label)

    monkeypatch.setattr(Evaluator, "measure", noting)
    return seen


def test_a_search_writes_every_file_that_the_report_needs(finished: Run, make_model: Any) -> None:
    run = finished
    chosen = read_json(run.search / "chosen.json")
    assert chosen["name"] in NAMES and chosen["measured"] == 3
    assert chosen["scores"].keys() == {"choose", "report"} and chosen["sentence"]
    models = {row["model"] for row in read_jsonl(run.scores)}
    assert models == {"base", "over", "under"} | NAMES
    for model in models:
        answers = read_jsonl(run.answers / f"{model}.jsonl")
        assert len(answers) == 16 and "completion" in answers[0]
        assert len(read_jsonl(run.answers / f"{model}.losses.jsonl")) == 8
    for name in NAMES:
        assert read_json(run.candidates / name / "candidate.json")["method"] == "ties"
    PeftModel.from_pretrained(make_model(), str(run.candidates / chosen["name"]))
    assert run.state("search") == "done"


def test_both_splits_have_members_and_nonmembers(finished: Run) -> None:
    rows = {r["part"]: r["n"] for r in read_jsonl(finished.scores)
            if r["metric"] == "mia_auc" and r["model"] == "base" and r.get("task", "") == ""
            and "part" in r}  # fmt: skip
    assert rows == {"choose": 6, "report": 6}  # 4 members in both, 2 of 4 non-members in each


def test_a_killed_search_resumes_to_the_same_scores(
    run: Run, finished: Run, monkeypatch: pytest.MonkeyPatch, labels: list[str]
) -> None:
    spec = load_recipe(run.recipe).search
    measure = Evaluator.measure

    def killed(self: Evaluator, adapter: Adapter | None, label: str) -> dict[str, Measured]:
        if len(labels) == 4:
            raise KeyboardInterrupt
        return measure(self, adapter, label)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Evaluator, "measure", killed)
        search(run, spec, options())
    assert 0 < len(lines(run)) < len(lines(finished))
    search(run, spec, options())
    assert lines(run) == lines(finished)
    assert len(labels) == len(set(labels)) == 6  # no candidate was measured twice
    assert read_json(run.search / "chosen.json") == read_json(finished.search / "chosen.json")


def test_a_second_search_measures_new_candidates_only(searched: Run, labels: list[str]) -> None:
    assert call(searched, "--densities", "0.2,0.6").exit_code == 0
    assert labels == ["ties-factors-d0.60"]


def test_a_search_on_a_part_of_the_forget_rows_clears_no_candidate(run: Run) -> None:
    recipe = change(load_recipe(run.recipe), evaluation={"limit": 2})
    save_recipe(recipe, run.recipe)
    choice = search(run, recipe.search, options(SearchBudget(candidates=1)))
    total = len(read_jsonl(run.data / "forget.jsonl"))
    verdict = choice.verdict
    assert verdict.state != "FORGOTTEN" and any(
        f"of {total} forget rows" in text and "--limit" in text
        for text in [*verdict.reasons, *verdict.uncertain]
    )


def test_another_objective_needs_no_model(searched: Run, monkeypatch: pytest.MonkeyPatch) -> None:

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mergeforget.models.load_model", refused)
    done = call(searched, "--objective", "0.5*mia + 0.5*retain", "--json")
    assert json.loads(done.stdout)["objective"] == "0.5*mia + 0.5*retain"


def test_other_settings_are_refused_unless_again(searched: Run, labels: list[str]) -> None:
    refused = call(searched, "--seed", "7")
    assert refused.exit_code == 4
    assert "seed was 0, now 7" in refused.stderr and "--again" in refused.stderr
    del labels[:]
    assert call(searched, "--seed", "7", "--again").exit_code == 0
    assert len(labels) == 6


def test_a_setting_of_a_later_version_does_not_invalidate_a_search(
    searched: Run, labels: list[str]
) -> None:
    """Written by a version that knew fewer settings of an evaluation, and wrote their defaults."""
    path = searched.search / "settings.json"
    settings = read_json(path)
    settings["evaluation"] |= {"membership": "documents", "mmlu": None}
    write_json(path, settings)
    search(searched, load_recipe(searched.recipe).search, options())
    assert labels == []


def test_budget_in_candidates_counts_earlier_ones_and_time_ends_it(
    run: Run, labels: list[str]
) -> None:
    search(run, load_recipe(run.recipe).search, options(budget=SearchBudget(candidates=2)))
    assert labels[:3] == ["base", "over", "under"]
    assert sorted(labels[3:]) == ["ties-factors-d0.20", "ties-factors-d0.80"]
    search(run, load_recipe(run.recipe).search, options(budget=SearchBudget(candidates=2)))
    assert len(labels) == 5
    choice = search(run, load_recipe(run.recipe).search, options(budget=SearchBudget(seconds=0)))
    assert choice.measured == 2


def test_a_candidate_without_finite_outputs_is_excluded(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measure = Evaluator.measure

    def broken(self: Evaluator, adapter: Adapter | None, label: str) -> dict[str, Measured]:
        if label == "ties-factors-d0.50":
            raise NumericError("The model's likelihood is not a number.")
        return measure(self, adapter, label)

    monkeypatch.setattr(Evaluator, "measure", broken)
    assert search(run, load_recipe(run.recipe).search, options()).measured == 2
    assert "Skipped ties-factors-d0.50" in capsys.readouterr().err
    assert not (run.candidates / "ties-factors-d0.50").exists()


def test_missing_nonmembers_are_reported_with_a_remedy(run: Run) -> None:
    (run.data / "holdout.jsonl").write_text("")
    done = call(run)
    assert done.exit_code == 4 and "Give such rows with --holdout FILE" in done.stderr


@pytest.mark.parametrize("empty", [True, False])
def test_without_nonmembers_a_merge_is_chosen_by_its_answers(run: Run, empty: bool) -> None:
    (run.data / "holdout.jsonl").unlink()
    if empty:
        (run.data / "holdout.jsonl").touch()
    done = call(run, "--objective", BY_ANSWERS)
    assert done.exit_code == 0, done.output
    chosen = read_json(run.search / "chosen.json")
    scores = read_scores(run.scores)[chosen["name"]]
    assert find(scores, "leak_rate", "forget", part="report")
    assert not find(scores, "mia_auc", "mia", part="report")
    page = write_report(run).read_text()
    assert "Membership was not measured" in page


def test_nonmembers_from_a_file_are_kept_in_the_run(run: Run, tmp_path: Path) -> None:
    outside = (run.data / "holdout.jsonl").rename(tmp_path / "outside.jsonl")
    write_json(run.data / "difficulty.json", {"another": 1.0})  # of the non-members before
    assert call(run, "--holdout", str(outside), "--budget", "1").exit_code == 0
    assert not (run.data / "difficulty.json").exists()
    assert (run.data / "holdout.jsonl").read_text() == outside.read_text()


def test_a_copy_of_the_nonmembers_keeps_their_split(run: Run, tmp_path: Path) -> None:
    """Cached scores of the matched splits would be compared with those of random ones."""
    copy = Path(shutil.copy(run.data / "holdout.jsonl", tmp_path / "copy.jsonl"))
    evaluation = load_recipe(run.recipe).evaluation
    names = {row.subject for row in load_data(run, evaluation, None, 0).nonmembers}
    known = {name: 1.0 + i for i, name in enumerate(sorted(names))}
    write_json(run.data / "difficulty.json", known)
    data = load_data(run, evaluation, copy, 0)
    assert data.difficulty == known and not data.holdout
    model = {"name": load_recipe(run.recipe).model.name}
    run.write_recipe(change(load_recipe("level"), model=model))
    done = call(run, "--seed", "5", "--holdout", str(copy), "--budget", "1")
    assert done.exit_code == 2 and "selection split of seed 0" in done.stderr
    assert (run.data / "difficulty.json").exists()


def test_another_seed_would_report_on_rows_that_the_checks_have_used(run: Run) -> None:
    write_json(run.data / "difficulty.json", {"a row": 1.0})
    model = {"name": load_recipe(run.recipe).model.name}
    run.write_recipe(change(load_recipe("level"), model=model))
    done = call(run, "--seed", "5", "--budget", "1")
    assert done.exit_code == 2 and "selection split of seed 0" in done.stderr
    assert not run.search.is_dir()


def test_refused_nonmembers_leave_the_run_unchanged(searched: Run, tmp_path: Path) -> None:
    before = (searched.data / "holdout.jsonl").read_text()
    other = tmp_path / "other.jsonl"
    other.write_text(before.replace("holdout", "other"))
    assert other.read_text() != before
    done = call(searched, "--holdout", str(other))
    assert done.exit_code == 4 and "or restore these settings" in done.stderr
    assert (searched.data / "holdout.jsonl").read_text() == before
    assert call(searched).exit_code == 0


def test_a_proxy_evaluation_with_answers_is_not_a_full_evaluation(run: Run) -> None:
    store, candidate = Store(run), Candidate("ties", 0.5)
    store.keep_explored(candidate, [Score("mia_auc", "mia", 0.5, "nearer", 4, part="choose")])
    write_jsonl(run.answers / f"{candidate.name}.jsonl", [{"id": "a"}])
    assert store.has_proxy(candidate.name) and not store.has(candidate.name)


def test_mmlu_is_evaluated_if_the_objective_uses_it(run: Run, tmp_path: Path) -> None:
    question = "Which?,a,b,c,d,{}\n"
    for kind, letters in (("dev", "ABCDA"), ("test", "AB")):
        file = tmp_path / "mmlu" / kind / f"anatomy_{kind}.csv"
        file.parent.mkdir(parents=True)
        file.write_text("".join(question.format(letter) for letter in letters))
    done = call(run, "--objective", "mmlu", "--budget", "1")
    assert done.exit_code == 2 and "evaluation.mmlu" in done.stderr
    asked_so = {"mmlu": str(tmp_path / "mmlu"), "mmlu_shots": 0}
    save_recipe(change(load_recipe(run.recipe), evaluation=asked_so), run.recipe)
    assert call(run, "--objective", "mmlu", "--budget", "1").exit_code == 0
    asked = [r for r in read_jsonl(run.scores) if r["metric"] == "mmlu" and "part" in r]
    assert {r["model"] for r in asked} > {"base", "over", "under"} and asked[0]["n"] == 2
    assert {r["definition"] for r in asked} == {"mmlu-micro-0-shot@1"}


def test_a_time_limit_always_measures_one_candidate(run: Run) -> None:
    done = call(run, "--budget", "0.001s")
    assert done.exit_code == 0 and run.chosen_name(), done.output
    measured = {name for name in read_scores(run.scores) if name.startswith("ties")}
    assert run.chosen_name() in measured
    assert call(run).exit_code == 0


def test_nonmembers_that_were_trained_on_are_refused(run: Run) -> None:
    done = call(run, "--holdout", str(run.data / "retain.jsonl"))
    assert done.exit_code == 4 and "also in the forget or retain set" in done.stderr


def test_a_missing_pair_is_reported_with_the_command(run: Run) -> None:
    shutil.rmtree(run.under)
    done = call(run)
    assert done.exit_code == 4 and "no under adapter yet" in done.stderr


@pytest.mark.parametrize("density", ["0", "1.5", "0.1:0.05:0.1", "x"])
def test_bad_densities_are_refused_before_anything_is_loaded(run: Run, density: str) -> None:
    assert call(run, "--densities", density).exit_code == 3


def test_resume_without_a_search_is_an_error(run: Run, searched: Run, labels: list[str]) -> None:
    assert call(run, "--resume").exit_code == 4
    assert call(searched, "--resume").exit_code == 0 and labels == []
    assert call(searched, "--resume", "--again").exit_code == 2


def test_a_run_locked_by_another_process_is_refused(run: Run) -> None:
    with run.lock():
        done = call(run)
    assert done.exit_code == 6 and "in use" in done.stderr


def test_a_rank_that_no_candidate_can_have_is_refused(run: Run) -> None:
    refused = call(run, "--spaces", "delta", "--ranks", "4,999")
    assert refused.exit_code == 2 and "Rank 999 is more than the result can have" in refused.stderr
    assert not (run.search / "settings.json").exists()


def test_floors_on_leaks_are_measured_with_each_candidate(run: Run) -> None:
    done = call(run, "--objective", "mia if leak4bit <= 5% and relearn <= 5%", "--budget", "1",
                "--json")  # fmt: skip
    assert done.exit_code == 0
    chosen = json.loads(done.stdout)["name"]
    scores = Store(run).scores
    for model in ("base", chosen):
        for name in ("leak4bit", "relearn"):
            parts = {s.part: s for s in scores[model] if s.metric == name}
            assert set(parts) == {"all", "choose", "report"}
            assert all(0 <= s.value <= 1 and s.better == "lower" for s in parts.values())
            assert parts["all"].n == parts["choose"].n == parts["report"].n
    shown = {s.metric: s.n for s in scores[chosen] if s.part == "all"}
    assert shown["relearn"] < shown["leak4bit"]  # subjects that were trained on are not counted
