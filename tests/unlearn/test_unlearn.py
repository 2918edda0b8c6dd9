"""`unlearn` leads from a model and rows to a verdict, and resumes after an interruption."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from conftest import build_model
from unlearning import call

from mergeforget.api.job import Job
from mergeforget.api.unlearn import Unlearned, _is_attacked, _search_spec
from mergeforget.api.unlearn_pair import _repeated_twins, trained
from mergeforget.api.unlearn_request import request_of
from mergeforget.attack.headline import run_verdict
from mergeforget.data.readers import read_rows
from mergeforget.data.twins import as_stand_ins, nonmember_twins, stands_in
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.recipe import load_recipe
from mergeforget.run import Run
from mergeforget.search.split import BY_ANSWERS, group, load_data
from mergeforget.train.run_rows import prepare


def test_the_whole_job_ends_with_a_verdict_and_a_checked_export(result: Unlearned) -> None:
    run = result.run.paths
    assert [row["model"] for row in result.table] == ["base", "over", "under", result.chosen]
    base, over, under, _ = result.table
    assert base["forget"] == 1 and base["mia_auc"] == 1 and over["forget"] == 0
    assert min(over["mia_auc"], under["mia_auc"]) < 1  # which is lower varies with so few rows
    ends = read_json(run.root / "until" / "over.json")
    assert ends["outcome"] == "reached" and ends["auc"] <= 0.45
    assert result.verdict in ("NOT FORGOTTEN", "NOT ENOUGH DATA")  # without prompts and relearn
    assert result.paragraph.startswith(result.verdict) and "MIA AUC" in str(result)
    run = result.run.paths  # the same verdict everywhere
    stated = read_json(run.report.parent / "evidence.json")["verdict"]
    assert run_verdict(run).state == stated["state"] == result.verdict
    kept = read_json(run.attacks / "verdict.json")[result.chosen]
    assert kept["state"] == result.verdict
    assert f">{result.verdict}<" in re.sub(r"\s*([<>])\s*", r"\1", run.report.read_text())
    card = (run.root / "export" / f"{result.chosen}-adapter" / "README.md").read_text()
    assert f"**{result.verdict}.**" in card
    assert (run.root / "export" / f"{result.chosen}-adapter" / "adapter_config.json").is_file()
    assert run.report.is_file() and read_json(run.root / "result.json")["chosen"] == result.chosen
    stages = read_json(run.status)
    assert all(stages[f"unlearn-{s}"]["state"] == "done"
               for s in ("data", "pair", "search", "attacks", "report", "export"))  # fmt: skip
    assert set(result.seconds) >= {"data", "pair", "search", "attacks"}


def test_the_splits_of_the_nonmembers_are_matched_by_their_nll_under_the_base(
    result: Unlearned, knowing: dict[str, Path]
) -> None:
    run = result.run.paths
    known = read_json(run.data / "difficulty.json")
    data = load_data(run, load_recipe(run.recipe).evaluation, None, 0)
    lone = data.lone()
    assert data.difficulty == known == {group(r, lone)[1]: ANY for r in data.nonmembers}
    assert len(set(known.values())) > 1
    chosen = {group(r, lone)[1] for r in data.choosing(0.5, 0, {"mia"}).nonmembers}
    tasks = {group(r, lone)[1]: r.task for r in data.nonmembers}
    assert len(set(tasks.values())) == 1  # so that pairs are neighbours by NLL alone
    order = sorted(known, key=lambda name: known[name])
    pairs = [order[i : i + 2] for i in range(0, len(order) - 1, 2)]
    assert all(len(chosen & set(pair)) == 1 for pair in pairs)


def test_a_repeated_call_resumes_with_cached_measurements(
    result: Unlearned, knowing: dict[str, Path]
) -> None:
    run = result.run.paths
    before = run.history.stat().st_mtime_ns, read_jsonl(run.scores)
    again = call(knowing, run.root, attacks=["quantise"])
    assert (run.history.stat().st_mtime_ns, read_jsonl(run.scores)) == before
    assert (again.verdict, again.table) == (result.verdict, result.table)


def test_a_merge_that_was_chosen_later_is_attacked_and_reported(
    result: Unlearned, knowing: dict[str, Path]
) -> None:
    """As if an earlier call with less time had chosen, attacked and reported another merge."""
    run = result.run.paths
    path = run.attacks / "quantise.json"
    stored = read_json(path)
    stored["results"][0]["model"] = "another"
    write_json(path, stored)
    run.set_state("report", "done", model="another")
    run.report.write_text("about another")
    call(knowing, run.root, attacks=["quantise"])
    results = read_json(path)["results"]
    assert [one["model"] for one in results] == ["another", result.chosen]
    assert "about another" not in run.report.read_text()
    write_json(path, stored | {"results": results[1:]})


def test_report_and_card_are_written_again_if_the_evidence_changed(
    result: Unlearned, knowing: dict[str, Path]
) -> None:
    """An attack between two calls, or a kill before the report, changes the verdict's reasons."""
    run = result.run.paths
    call(knowing, run.root, attacks=["quantise"])  # other tests may have changed the evidence
    card = run.root / "export" / f"{result.chosen}-adapter" / "README.md"
    whole = Path(result.export(full=True)) / "README.md"
    notes = read_json(run.root / "notes.json")
    assert "not measured" not in card.read_text() + whole.read_text()
    written = run.report.stat().st_mtime_ns, card.stat().st_mtime_ns
    call(knowing, run.root, attacks=["quantise"])
    assert (run.report.stat().st_mtime_ns, card.stat().st_mtime_ns) == written
    write_json(run.root / "notes.json", notes | {"membership": "not measurable"})
    again = call(knowing, run.root, attacks=["quantise"])
    assert "Membership was not measured" in again.paragraph
    for path in (card, whole, run.report):
        assert "Membership was not measured" in path.read_text()
    stated = read_json(run.attacks / "verdict.json")[result.chosen]["sentence"]
    assert stated in again.paragraph
    write_json(run.root / "notes.json", notes)
    call(knowing, run.root, attacks=["quantise"])
    assert "not measured" not in card.read_text()
    shutil.rmtree(whole.parent)


def test_an_attack_with_other_arguments_is_repeated_by_unlearn(result: Unlearned) -> None:
    run, name = result.run.paths, result.chosen
    path = run.attacks / "quantise.json"
    stored = read_json(path)
    assert _is_attacked(run, name, "quantise") and not _is_attacked(run, name, "relearn")
    for changed, done in (({"given": {"bits": [8]}}, False), ({"forget_rows": [1, 6]}, False),
                          ({}, True)):  # fmt: skip
        one = stored["results"][-1]
        settings = {**one["settings"], **changed}
        write_json(path, {**stored, "results": [{**one, "settings": settings}]})
        assert _is_attacked(run, name, "quantise") == done
    write_json(path, stored)


def test_rows_from_a_generator_are_read_once(knowing: dict[str, Path], tmp_path: Path) -> None:
    rows = read_jsonl(knowing["forget"])
    generated: Any = (row for row in rows)
    asked = request_of(
        str(knowing["model"]), forget=generated, retain=knowing["retain"],
        holdout=None, recipe="level", memorise=False, control=None, adapter=None, after=None,
        template=None, system_prompt=None, turns=None, settings=(),
    )  # fmt: skip
    assert asked.facts["forget"] == asked.sources[0] == rows


@pytest.mark.slow
def test_one_person_is_unlearned(knowing: dict[str, Path], tmp_path: Path) -> None:
    rows = [row | {"subject": "Ann"} for row in read_jsonl(knowing["forget"])]
    write_jsonl(tmp_path / "ann.jsonl", rows)
    result = call(knowing, tmp_path / "run", forget=tmp_path / "ann.jsonl", attacks=[])
    assert result.table[-1]["forget"] < result.table[0]["forget"] == 1
    assert result.verdict in ("NOT FORGOTTEN", "NOT ENOUGH DATA")
    assert any("about one subject" in note for note in result.notes)


@pytest.mark.parametrize(
    ("holdout", "repeated", "measurable"),
    [("b-twin0:a", 0.35, False), ("b-twin0:a", 0.2, True), ("a", 0.35, True)],
)
def test_twins_that_the_base_repeats_are_no_substitute_for_a_holdout(
    holdout: str, repeated: float, measurable: bool, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    write_json(tmp_path / "notes.json", {"membership": "measurable", "notes": []})
    write_json(tmp_path / "until" / "over.json", {"repeated_twins": repeated})
    write_jsonl(run.data / "holdout.jsonl", [{"id": holdout, "input": "who?", "output": "Ann"}])
    found = _repeated_twins(run)
    kept = read_json(tmp_path / "notes.json")
    assert (kept["membership"] == "measurable") == measurable
    assert kept["notes"] == found and len(found) == (not measurable)
    assert _repeated_twins(run) == []  # a resumed job reads the note


def test_columns_with_other_names_are_read_by_the_whole_command(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    """Training reads the rows that were written, whose columns have the usual names."""
    rows = read_jsonl(knowing["forget"])
    for name in ("forget", "retain"):
        named = [{"q1": r["input"], "a1": r["output"]} for r in read_jsonl(knowing[name])]
        write_jsonl(tmp_path / f"{name}.jsonl", named)
    settings = ["data.columns.input=q1", "data.columns.output=a1"]
    asked = request_of(
        str(knowing["model"]), forget=tmp_path / "forget.jsonl", retain=tmp_path / "retain.jsonl",
        holdout=None, recipe="level", memorise=False, control=None, adapter=None, after=None,
        template=None, system_prompt=None, turns=None, settings=settings,
    )  # fmt: skip
    run = Run(tmp_path / "run")
    for _ in range(2):  # the repeated call resumes
        recipe, _ = trained(asked, Job(run, None), make_pair=lambda recipe, run: None)
        data = recipe.data
        found = read_rows(Path(str(data.forget)), split="forget", columns=data.columns)
        assert [row.input for row in found] == [row["input"] for row in rows]


@pytest.mark.parametrize(("turns", "asked_rows"), [(None, 2), ("last", 1), ("every", 2)])
def test_every_turn_of_a_conversation_is_forgotten_unless_last_is_given(
    knowing: dict[str, Path], tmp_path: Path, turns: str | None, asked_rows: int
) -> None:
    rows = read_jsonl(knowing["forget"])
    talks = [
        {"messages": [{"role": role, "content": row[key]} for row in pair
                      for role, key in (("user", "input"), ("assistant", "output"))]}
        for pair in zip(rows[::2], rows[1::2], strict=False)
    ]  # fmt: skip
    write_jsonl(tmp_path / "forget.jsonl", talks)
    asked = request_of(
        str(knowing["model"]), forget=tmp_path / "forget.jsonl", retain=knowing["retain"],
        holdout=knowing["holdout"], recipe="zjuklab", memorise=False, control=None, adapter=None,
        after=None, template=None, system_prompt=None, turns=turns, settings=(),
    )  # fmt: skip
    run = Run(tmp_path / "run")
    recipe, _ = trained(asked, Job(run, None), make_pair=lambda recipe, run: None)
    found = read_rows(Path(str(recipe.data.forget)), split="forget")
    assert len(found) == asked_rows * len(talks)


@pytest.mark.parametrize("attacks", [(), ("prompts", "relearn")])
def test_the_estimate_before_the_training_includes_the_attacks(
    knowing: dict[str, Path], tmp_path: Path, attacks: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    asked = request_of(
        str(knowing["model"]), forget=knowing["forget"], retain=knowing["retain"], holdout=None,
        recipe="level", memorise=False, control=None, adapter=None, after=None, template=None,
        system_prompt=None, turns=None, settings=(),
    )  # fmt: skip
    job = Job(Run(tmp_path / "run"), 1e-6)
    trained(asked, job, attacks=attacks, make_pair=lambda recipe, run: None)
    (line,) = [m for m in caplog.messages if m.startswith("Estimate")]
    assert line.endswith("without attacks.") == (not attacks)
    assert bool(job.expected["attacks"]) == bool(attacks)
    assert any("more than --time" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("forget", "holdout", "word"),
    [("holdout", "forget", "more"), ("forget", "holdout", "less")],
)
def test_a_holdout_of_another_difficulty_for_the_control_is_named(
    knowing: dict[str, Path], tmp_path: Path, forget: str, holdout: str, word: str
) -> None:
    """Here, the control knows the rows of ``knowing["forget"]``."""
    asked = request_of(
        str(knowing["model"]), forget=knowing[forget], retain=knowing["retain"],
        holdout=knowing[holdout], recipe="level", memorise=False, control=str(knowing["model"]),
        adapter=None, after=None, template=None, system_prompt=None, turns=None, settings=(),
    )  # fmt: skip
    run = Run(tmp_path / "run")
    trained(asked, Job(run, None), make_pair=lambda recipe, run: None)
    (note,) = [n for n in read_json(run.root / "notes.json")["notes"] if "the holdout" in n]
    assert f"finds its rows {word} likely than the forget rows" in note
    assert read_json(run.root / "notes.json")["membership"] == "measurable"


@pytest.mark.parametrize("controlled", [True, False])
def test_without_a_holdout_twins_that_a_control_finds_as_likely_are_the_unseen_rows(
    knowing: dict[str, Path], tmp_path: Path, tiny_tokenizer: Any, controlled: bool
) -> None:
    control = str(tmp_path / "untouched") if controlled else None
    for part in (build_model(), tiny_tokenizer):
        part.save_pretrained(tmp_path / "untouched")
    asked = request_of(
        str(knowing["model"]), forget=knowing["forget"], retain=knowing["retain"], holdout=None,
        recipe="level", memorise=False, control=control, adapter=None, after=None, template=None,
        system_prompt=None, turns=None, settings=(),
    )  # fmt: skip
    run = Run(tmp_path / "run")
    recipe, notes = trained(asked, Job(run, None), make_pair=lambda recipe, run: None)
    forget = read_rows(Path(str(recipe.data.forget)))
    twins = read_rows(Path(str(recipe.data.holdout)))
    assert all(map(stands_in, twins)) and len(twins) == 4 * len(forget)
    seed = recipe.data.seed + 1
    kept = read_rows(Path(str(recipe.data.retain)))
    usual = as_stand_ins(nonmember_twins(forget, corpus=kept, seed=seed))
    assert ([twin.id for twin in twins] == [twin.id for twin in usual]) != controlled
    assert any("perturbed twins of" in note for note in notes)
    membership = read_json(run.root / "notes.json")["membership"]
    assert membership == ("measurable" if controlled else "not measurable")


def test_a_small_holdout_gets_twins_that_stay_in_the_split_of_their_rows(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    asked = request_of(
        str(knowing["model"]), forget=knowing["forget"], retain=knowing["retain"],
        holdout=knowing["holdout"], recipe="level", memorise=False, control=None, adapter=None,
        after=None, template=None, system_prompt=None, turns=None, settings=(),
    )  # fmt: skip
    run = Run(tmp_path / "run")
    recipe, notes = trained(asked, Job(run, None), make_pair=lambda recipe, run: None)
    prepare(recipe, run)
    rows = read_rows(Path(str(recipe.data.holdout)))
    real = [row for row in rows if not stands_in(row)]
    assert len(real) == len(read_jsonl(knowing["holdout"])) < len(rows) <= 48
    assert any(note.startswith(f"Only {len(real)} holdout rows") for note in notes)
    data = load_data(run, recipe.evaluation, None, 0)
    assert len(data.nonmembers) == len(rows)
    chosen = data.choosing(0.5, 0, {"mia"}).nonmembers
    subjects = {row.subject for row in chosen}
    assert {row.subject for row in data.nonmembers if row not in chosen}.isdisjoint(subjects)
    assert {row.subject for row in chosen if stands_in(row)} <= {row.subject for row in real}


@pytest.mark.parametrize("holdout", [True, False])
def test_without_unseen_rows_the_objective_reads_answers_alone(
    holdout: bool, tmp_path: Path
) -> None:
    run, recipe = Run(tmp_path), load_recipe("zjuklab")
    rows = [{"id": "a", "input": "who?", "output": "Ann"}] if holdout else []
    write_jsonl(run.data / "holdout.jsonl", rows)
    found = _search_spec(run, recipe)
    expected = recipe.search.objective if holdout else BY_ANSWERS
    assert found == recipe.search.model_copy(update={"objective": expected})
