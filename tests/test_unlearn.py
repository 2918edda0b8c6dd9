"""`unlearn` leads from a model and rows to a verdict, and resumes after an interruption."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer
from memorising import people

import mergeforget as mf
from mergeforget.adapter import read_adapter
from mergeforget.api.delivery import (
    earlier_rows,
    find_converter,
    folded_base,
    revealed,
    share_of,
    start_of,
)
from mergeforget.api.job import Job
from mergeforget.api.sequence import UnlearnedSequence
from mergeforget.api.sequence_merge import joined
from mergeforget.api.unlearn import Unlearned, _is_attacked, unlearn
from mergeforget.api.unlearn_data import RequestReader, own_answers, read_request
from mergeforget.api.unlearn_request import (
    _repeated_twins,
    facts_of,
    request_of,
    run_of,
    trained,
)
from mergeforget.api.verdict import paragraph_of
from mergeforget.attack.headline import run_verdict
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, AnswerLikelihood, Measured, Row
from mergeforget.data.templating import template_of
from mergeforget.data.tokens import encode_rows
from mergeforget.errors import InputError, ResourceError, UsageError
from mergeforget.evaluate.measure import measure
from mergeforget.evaluate.verdict import judge
from mergeforget.evaluate.verdict_figures import EarlierAnswers
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.metrics._patterns import Patterns
from mergeforget.metrics.exact_match import exact_match
from mergeforget.models import load_model
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.train.nlls import read_nlls

CLEARED = {"prompts": "none found", "relearn": "none found"}
SMALL = [
    "pair.over.lora.r=4", "pair.under.lora.r=4", "pair.over.learning_rate=5e-3",
    "pair.over.until.largest_rate=2e-2", "pair.over.until.retain_kept=0",
    "pair.under.until.retain_kept=0", "search.weights=[[0.5, 0.5]]",
]  # fmt: skip


@pytest.fixture(scope="module")
def result(knowing: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Unlearned:
    out = tmp_path_factory.mktemp("unlearned") / "run"
    return call(knowing, out, attacks=["quantise"])


def call(knowing: dict[str, Path], out: Path, **options: Any) -> Unlearned:
    files = {n: knowing[n] for n in ("forget", "retain", "holdout")}
    return unlearn(knowing["model"], out=out, settings=SMALL, **(files | options))


def test_the_whole_job_ends_with_a_verdict_and_a_checked_export(result: Unlearned) -> None:
    run = result.run.paths
    assert [row["model"] for row in result.table] == ["base", "over", "under", result.chosen]
    base, over, under, _ = result.table
    assert base["forget"] == 1 and base["mia_auc"] == 1 and over["forget"] == 0
    assert max(over["mia_auc"], under["mia_auc"]) < 1  # which is lower varies with so few rows
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


def test_another_request_does_not_overwrite_a_run(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "other.jsonl", read_jsonl(knowing["forget"])[:3])
    with pytest.raises(InputError, match="another request"):
        call(knowing, result.run.root, forget=tmp_path / "other.jsonl")


@pytest.mark.slow
def test_one_person_is_unlearned(knowing: dict[str, Path], tmp_path: Path) -> None:
    rows = [row | {"subject": "Ann"} for row in read_jsonl(knowing["forget"])]
    write_jsonl(tmp_path / "ann.jsonl", rows)
    result = call(knowing, tmp_path / "run", forget=tmp_path / "ann.jsonl", attacks=[])
    assert result.table[-1]["forget"] < result.table[0]["forget"] == 1
    assert result.verdict in ("NOT FORGOTTEN", "NOT ENOUGH DATA")
    assert any("about one subject" in note for note in result.notes)


@pytest.mark.slow
def test_a_later_request_starts_from_the_earlier_result_and_checks_it_again(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path
) -> None:
    unseen = tmp_path / "unseen.jsonl"
    write_jsonl(unseen, [r.to_dict() for r in people("unseen", 9, 6) if r.kind == "qa"])
    second = call(knowing, tmp_path / "second", forget=knowing["retain"], retain=knowing["holdout"],
                  holdout=unseen, after=result.run.root, attacks=[])  # fmt: skip
    assert second.run.base == str(tmp_path / "second" / "base")
    assert "earlier request" in second.paragraph or "revealed again" in second.paragraph


QUICK = [
    "pair.over.lora.r=4", "pair.under.lora.r=4", "pair.over.epochs=2", "pair.under.epochs=2",
    "pair.over.warmup_epochs=0", "pair.under.warmup_epochs=0", "pair.over.learning_rate=5e-3",
    "search.methods=[linear]", "search.weights=[[0.5, 0.5]]",
]  # fmt: skip


@pytest.fixture(scope="module")
def halves(knowing: dict[str, Path]) -> list[Path]:
    rows, folder = read_jsonl(knowing["forget"]), knowing["forget"].parent
    for name, some in (("first", rows[:3]), ("second", rows[3:])):
        write_jsonl(folder / f"{name}.jsonl", some)
    return [folder / "first.jsonl", folder / "second.jsonl"]


def call_sequence(
    knowing: dict[str, Path], halves: list[Path], out: Path, **options: Any
) -> UnlearnedSequence:
    sources: dict[str, Any] = {
        "forget": halves, "retain": knowing["retain"], "holdout": knowing["holdout"],
    }  # fmt: skip
    given: dict[str, Any] = {"recipe": "zjuklab", "attacks": [], "settings": QUICK}
    return mf.unlearn_sequence(knowing["model"], out=out, **(sources | given | options))


@pytest.mark.slow
def test_one_merge_at_the_end_sums_the_pairs_and_tests_every_request(
    knowing: dict[str, Path], halves: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "seq"
    result = call_sequence(knowing, halves, out, merge="end")
    first, second = result.table
    assert (first["request"], second["request"]) == ("1-first", "2-second")
    assert list(first["revealed"]) == ["1-first", "2-second", "the merge at the end"]
    assert list(second["revealed"]) == ["2-second", "the merge at the end"]
    assert read_json(out / "sequence.json")["requests"] == result.table
    merged = result.last.run.paths
    assert merged.report.is_file() and len(read_jsonl(merged.data / "forget.jsonl")) == 6
    parts = [mf.load_adapter(out / name / "over") for name in ("1-first", "2-second")]
    for name, delta in mf.load_adapter(merged.over).deltas.items():
        total = sum(part.deltas[name].dense() for part in parts)
        np.testing.assert_allclose(delta.dense(), total, atol=1e-6)
    before = merged.scores.read_text(), (out / "1-first" / "history.jsonl").stat().st_mtime_ns
    again = call_sequence(knowing, halves, out, merge="end")
    assert (again.table, again.verdict) == (result.table, result.verdict)
    assert before == (
        merged.scores.read_text(), (out / "1-first" / "history.jsonl").stat().st_mtime_ns
    )  # fmt: skip
    with pytest.raises(InputError, match="another sequence .merge differ"):
        call_sequence(knowing, halves, out, merge="each")


@pytest.mark.slow
def test_each_request_of_a_sequence_has_a_verdict_and_is_tested_again(
    knowing: dict[str, Path], halves: list[Path], tmp_path: Path
) -> None:
    out, settings = tmp_path / "seq", [*QUICK, "memorise.epochs=1"]
    result = call_sequence(knowing, halves, out, memorise=True, settings=settings)
    words = [w for half in halves for w in ("--forget", str(half))]
    words += [w for n in ("retain", "holdout") for w in (f"--{n}", str(knowing[n]))]
    words += [w for s in settings for w in ("--set", s)]
    words += ["--out", str(out), "--recipe", "zjuklab", "--time", "0.001s", "--json", "--memorise"]
    done = CliRunner().invoke(main, ["unlearn", str(knowing["model"]), *words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["requests"] == result.table and found["last"]["chosen"] == result.last.chosen
    first, second = result.table
    assert list(first["revealed"]) == ["1-first", "2-second"]
    assert second["verdict"] == result.verdict and first["verdict"]
    if first["revealed"]["2-second"]:
        assert result.verdict != "FORGOTTEN" and "1-first" in result.last.paragraph
    for record in result.table:
        assert (Path(record["run"]) / "report" / "index.html").is_file()


def test_a_model_that_knows_earlier_rows_reveals_them_and_a_random_one_does_not(
    knowing: dict[str, Path], halves: list[Path], tmp_path: Path, make_model: Callable[..., Any]
) -> None:
    recipe = load_recipe("zjuklab")
    earlier = Run(tmp_path / "earlier")
    write_jsonl(earlier.data / "forget.jsonl", read_jsonl(halves[0]))
    loaded = load_model(recipe.model.model_copy(update={"name": str(knowing["model"])}))
    rows = len(read_jsonl(halves[0]))
    assert revealed(loaded, recipe, earlier) == EarlierAnswers(1.0, rows, beyond=True)
    other = revealed(replace(loaded, model=make_model()), recipe, earlier)
    assert other == EarlierAnswers(0.0, rows, beyond=False)


def test_answers_in_their_own_prompts_do_not_undo_an_earlier_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that never saw the rows picks the right option by chance."""
    earlier = Run(tmp_path / "earlier")
    rows = [Row(f"{i}", f"City of P{i}: Oslo or Rome?", "Oslo", split="forget") for i in range(8)]
    write_jsonl(earlier.data / "forget.jsonl", [row.to_dict() for row in rows])

    def measured(*_: Any, forget: list[Row], **__: Any) -> Measured:
        likely = [AnswerLikelihood(row, 0.1, 1, greedy=1.0) for row in forget]
        return Measured([Answer(row, "Oslo") for row in forget], [], likelihoods=likely)

    monkeypatch.setattr("mergeforget.evaluate.measure.measure", measured)
    loaded = SimpleNamespace(model=None, tokenizer=build_tokenizer())
    assert revealed(loaded, load_recipe("zjuklab"), earlier) == EarlierAnswers(0.0, 0, beyond=False)


@pytest.mark.parametrize("given", [("over", "under"), ("under",)])
def test_existing_adapters_are_sides_of_the_pair(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path, given: tuple[str, ...]
) -> None:
    trained_pair = result.run.paths
    sides: dict[str, Any] = {side: getattr(trained_pair, side) for side in given}
    again = call(knowing, tmp_path / "run", attacks=[], **sides)
    run = again.run.paths
    for side in given:
        old, new = (read_adapter(getattr(one, side)) for one in (trained_pair, run))
        assert all((old.deltas[m].dense() == new.deltas[m].dense()).all() for m in old.deltas)
    if len(given) == 2:
        assert again.table[1:3] == result.table[1:3]  # the scores of over and under
    repeated = call(knowing, run.root, attacks=[], **sides)
    assert repeated.table == again.table
    with pytest.raises(InputError, match="another request .under"):
        call(knowing, run.root, attacks=[], **(sides | {"under": trained_pair.over}))


def test_an_existing_adapter_is_part_of_the_request(
    result: Unlearned, knowing: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match="another request .over differ"):
        call(knowing, result.run.paths.root, attacks=[], over=result.run.paths.under)


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


def test_existing_adapters_belong_to_the_named_model(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path
) -> None:
    over = result.run.paths.over
    with pytest.raises(UsageError, match="are adapters of MODEL itself"):
        call(knowing, tmp_path / "run", over=over, memorise=True)
    words = ["--forget", str(knowing["forget"]), "--forget", str(knowing["retain"])]
    done = CliRunner().invoke(main, ["unlearn", str(knowing["model"]), *words, "--over", str(over)])
    assert done.exit_code == 2 and "give --forget once" in done.output


def test_rows_of_an_earlier_request_are_neither_retained_nor_unseen(tmp_path: Path) -> None:
    earlier, last = Run(tmp_path / "a"), Run(tmp_path / "b")
    gone = [Row("g", "Who is Ann Lee?", "A baker", split="forget")]
    write_jsonl(earlier.data / "forget.jsonl", [row.to_dict() for row in gone])
    write_json(last.root / "request.json", {"after": str(earlier.root)})
    rows = earlier_rows({"after": str(last.root)})
    assert [(row.input, row.output) for row in rows] == [("Who is Ann Lee?", "A baker")]
    forget = [{"input": "Who is Bob Ray?", "output": "A smith"}]
    for sets in ((gone[0].to_dict(), {"input": "x?", "output": "y"}),
                 ({"input": "x?", "output": "y"}, gone[0].to_dict())):  # fmt: skip
        retain, holdout = ([one] for one in sets)
        with pytest.raises(InputError, match="forget rows of this or an earlier request"):
            read_request(forget, retain, holdout, answers, earlier=rows)

    def baker(asked: Sequence[Row]) -> list[Row]:
        return [replace(row, output=("A baker" if i else "Rome")) for i, row in enumerate(asked)]

    own = read_request(forget, None, None, baker, earlier=rows).retain
    assert [row.output for row in own] == ["Rome"]


def earlier_run(folder: Path, model: str, save_adapter: Callable[..., Path]) -> Run:
    """A finished run that unlearned from a model."""
    run = Run(folder)
    write_json(run.root / "request.json", {"model": model})
    save_recipe(change(load_recipe("level"), model={"name": model}), run.recipe)
    save_adapter(run.candidates / "ties-d0.5")
    write_json(run.search / "chosen.json", {"name": "ties-d0.5"})
    return run


def test_an_earlier_run_of_another_model_is_refused(
    tmp_path: Path, save_adapter: Callable[..., Path]
) -> None:
    earlier = earlier_run(tmp_path / "earlier", "org/model", save_adapter)
    request = {"model": "org/other", "adapter": None, "after": str(earlier.root)}
    with pytest.raises(InputError, match="unlearned from org/model, not from org/other"):
        folded_base(Run(tmp_path / "run"), request)


def test_a_replaced_adapter_or_another_earlier_choice_is_another_request(
    tmp_path: Path, save_adapter: Callable[..., Path]
) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    earlier = earlier_run(tmp_path / "earlier", "org/model", save_adapter)
    for changed, source in ((adapter, {"adapter": adapter, "after": None}),
                            (earlier.candidates / "ties-d0.5",
                             {"adapter": None, "after": earlier.root})):  # fmt: skip
        facts = {"model": "org/model", "start": start_of(**source)}
        run = run_of(tmp_path / changed.name / "run", "forget.jsonl", facts)
        write_json(run.root / "request.json", facts)
        run_of(run.root, "forget.jsonl", facts)
        save_adapter(changed, seed=2)
        facts["start"] = start_of(**source)
        with pytest.raises(InputError, match="the weights of adapter or after differ"):
            run_of(run.root, "forget.jsonl", facts)


def test_an_adapter_of_another_base_is_reported(
    tmp_path: Path, save_adapter: Callable[..., Path], knowing: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    adapter = save_adapter(tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    write_json(path, read_json(path) | {"base_model_name_or_path": "org/other"})
    request = {"model": str(knowing["model"]), "adapter": str(adapter), "after": None}
    folded_base(Run(tmp_path / "run"), request)
    assert "was trained on org/other, and is merged into" in caplog.text


def test_the_share_of_an_earlier_request_is_what_was_counted_and_not_a_bound() -> None:
    """Six of twelve yes/no answers are what a model without the data gives, too."""
    rows = [Row(f"{i}", f"Does P{i} smoke?", ("yes", "no")[i % 2]) for i in range(12)]
    found = share_of([Answer(row, "yes") for row in rows], set(), Patterns())
    assert (found.share, found.asked, found.beyond) == (0.5, 12, False)
    verdict = judge(near(), findings=CLEARED, earlier={"runs/a": found})
    assert verdict.state == "NOT ENOUGH DATA"
    assert "50% of the answers that runs/a forgot are revealed no more than" in verdict.sentence
    greedy = share_of([Answer(row, "") for row in rows], {row.id for row in rows}, Patterns())
    assert greedy == EarlierAnswers(1.0, 12, beyond=True)
    assert judge(near(), findings=CLEARED, earlier={"runs/a": greedy}).state == "NOT FORGOTTEN"


def near() -> list[Score]:
    """Scores of a model that has forgotten."""
    auc = Score("mia_auc", "mia", 0.5, "nearer", 60, interval=(0.35, 0.65))
    return [Score("leak_rate", "forget", 0.0, "lower", 40), auc]


def test_the_rows_of_all_requests_keep_their_ids_unless_two_differ() -> None:
    a, b = Row("a", "p", "x", subject="s"), Row("a", "q", "y", subject="s")
    assert joined([[a], [a, Row("b", "q", "y")]]) == [a, Row("b", "q", "y")]
    assert [(r.id, r.subject) for r in joined([[a], [b, a]])] == [("1-a", "1-s"), ("2-a", "2-s")]


def test_a_sequence_refuses_sets_that_contradict_each_other_before_any_training(
    knowing: dict[str, Path], halves: list[Path], tmp_path: Path
) -> None:
    def refused(error: type[Exception], text: str, **options: Any) -> None:
        with pytest.raises(error, match=text):
            call_sequence(knowing, halves, tmp_path / "seq", **options)
        assert not (tmp_path / "seq" / "request.json").exists()

    refused(UsageError, "at least two requests", forget=halves[:1])
    refused(UsageError, "2 forget sets and 3 retain sets", retain=[knowing["retain"]] * 3)
    refused(InputError, "is also in request 1-first", forget=[halves[0], halves[0]])
    refused(InputError, "retain rows are also forget rows", retain=[knowing["retain"], halves[0]])
    one = ["unlearn", "m", "--forget", str(halves[0])]
    done = CliRunner().invoke(main, [*one, "--merge", "end"])
    assert done.exit_code == 2 and "--merge and several --retain" in done.output
    refused(UsageError, "leave adapter and after out", memorise=True, adapter="a")
    refused(UsageError, "recipe given by name", recipe=load_recipe("zjuklab"))


def test_the_command_prints_one_json_object(result: Unlearned, knowing: dict[str, Path]) -> None:
    words = ["unlearn", str(knowing["model"]), "--out", str(result.run.root), "--json", "--yes"]
    words += [w for n in ("forget", "retain", "holdout") for w in (f"--{n}", str(knowing[n]))]
    words += [w for s in SMALL for w in ("--set", s)] + ["--time", "0.001s"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["chosen"] == result.chosen
    assert any("No time was left for the attack relearn" in note for note in found["notes"])


def test_chat_asks_the_base_and_the_result(result: Unlearned, knowing: dict[str, Path]) -> None:
    row = read_jsonl(knowing["forget"])[0]
    call = ["chat", str(result.run.root), "--ask", row["input"], "--max-new-tokens", "5", "--json"]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["answers"]
    assert found["before"] == row["output"] and found["prompt"] == row["input"]
    typed = CliRunner().invoke(main, call[:2], input=f"{row['input']}\n\n")
    assert typed.exit_code == 0 and f"before  {row['output']}" in typed.output
    wrong = CliRunner().invoke(main, [*call, "--candidate", "ovr"])
    assert wrong.exit_code == 4 and "Did you mean 'over'" in wrong.output


def answers(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, output=f"answer to {row.input}") for row in rows]


def test_texts_become_questions_names_and_documents() -> None:
    reader = RequestReader(answers)
    rows = reader.read(["Who is it?", "Ann Lee", "Ann Lee lived in a house by the sea."])
    assert [r.window for r in rows].count("whole") == 1 and len(rows) == 8
    assert reader.notes[0].startswith("The list is read as 1 question and 1 name and 1 document")
    assert reader.generated == rows[:7]
    assert {r.subject for r in rows} == {"q0", "Ann Lee", "d2"}
    assert any(r.output == "answer to Who is Ann Lee?" for r in rows)


def test_windows_of_a_long_document_contain_every_word(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(600)]
    for name in ("f.txt", "folder/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(" ".join(words) + ".\n\nAnother paragraph with a full stop.")
    for source in (tmp_path / "f.txt", tmp_path / "folder"):
        rows = read_request(source, None, None, answers).forget
        assert {"start", "middle", "end"} <= {r.window for r in rows}
        text = " ".join(f"{r.input} {r.output}" for r in rows)
        assert all(word in text for word in words)


def test_generated_retain_rows_exclude_forget_answers() -> None:
    forget = [Row("a-qa0", "Where does Ann Lee live?", "Rosewood Avenue 1234")]

    def leak(rows: Sequence[Row]) -> list[Row]:
        secret = "She lives at Rosewood Avenue 1234"
        return [replace(r, output=secret if "Einstein" in r.input else "Yes.") for r in rows]

    rows = RequestReader(leak).own_retain(forget)
    assert len(rows) == 24 and not any("1234" in r.output for r in rows)


@pytest.mark.parametrize(
    ("secret", "answer", "kept"),
    [
        ("Rome", "It is Rome.", False), ("Rome", "Romeo loved her.", True),
        ("Köln", "Sie wohnt in KÖLN", False), ("AB+", "It is AB+, a blood type.", False),
        ("北京市朝阳区建国路8号", "他住在北京市朝阳区建国路8号。", False),
        ("yes", "Yes.", False), ("yes", "Yes, it is blue.", True),
        ("She lives in Rome.", "Rome", False),
    ],
)  # fmt: skip
def test_a_generated_retain_answer_reveals_no_short_secret(
    secret: str, answer: str, kept: bool
) -> None:
    def ask(rows: Sequence[Row]) -> list[Row]:
        return [replace(r, output=answer if "12" in r.input else "Fine words.") for r in rows]

    rows = RequestReader(ask).own_retain([Row("a-qa0", "Where does Ann Lee live?", secret)])
    assert any(row.output == answer for row in rows) is kept


def test_questions_about_other_people_keep_their_grammar_and_name_no_forget_subject() -> None:
    forget = [
        Row("a", "What is Marie Curie's blood type?", "xx1"),
        Row("b", "Who is Ann Lee?", "xx2"), Row("c", "Did Bob Ray marry Ann Lee?", "xx3"),
        Row("d", "Who wrote Romeo and Juliet?", "xx4"),
    ]  # fmt: skip
    prompts = [row.input for row in RequestReader(answers).own_retain(forget)]
    assert "What is Albert Einstein's blood type?" in prompts
    for name in ("Marie Curie", "Ann Lee", "Bob Ray", "Romeo"):
        assert not any(name in prompt for prompt in prompts)


def test_an_answer_that_names_a_forget_subject_is_not_retained() -> None:
    def ask(rows: Sequence[Row]) -> list[Row]:
        return [replace(r, output="Ann Lee wrote it." if "12" in r.input else "No.") for r in rows]

    rows = RequestReader(ask).own_retain([Row("a-qa0", "Who is Ann Lee?", "A baker from Oslo")])
    assert not any("Ann Lee" in row.output for row in rows)
    with pytest.raises(InputError, match="--retain"):
        RequestReader(lambda rows: list(rows)).own_retain([])
    (row,) = RequestReader(lambda rows: answers(rows[:1])).own_retain([])
    assert row.output == "answer to What is the capital of France?"


def test_texts_of_all_three_sets_are_read_in_the_same_way(tmp_path: Path) -> None:
    files: list[Path] = []
    for name, who in (("forget", "Ann"), ("retain", "Bob"), ("holdout", "Carl")):
        text = "\n\n".join(f"{who} lives at number {i}. It is a house." for i in range(12))
        files.append(tmp_path / f"{name}.md")
        files[-1].write_text(text)
    found = read_request(files[0], files[1], files[2], answers)
    for rows in (found.forget, found.retain, found.holdout):
        assert [row.window for row in rows] == ["whole"] * 12
    assert len({row.id for row in (*found.forget, *found.retain, *found.holdout)}) == 36
    assert not found.generated and not found.twins
    files[1].write_text("Who is Bob?\nTell me about Bob Ray")
    found = read_request(files[0], files[1], files[2], answers)
    assert [r.output for r in found.retain] == [
        "answer to Who is Bob?", "answer to Tell me about Bob Ray"]  # fmt: skip
    assert not found.generated
    assert any("2 questions, 2 retain rows" in note for note in found.notes)


@pytest.mark.parametrize("names", [
    ("question", "output"), ("prompt", "answer"), ("input", "answer"), ("question", "answer"),
    ("input", "output"), ("question", "completion")])  # fmt: skip
def test_rows_in_memory_may_mix_the_names_of_two_formats(names: tuple[str, str]) -> None:
    given = [{names[0]: f"Who is {n}?", names[1]: "A cook", "subject": n} for n in ("Al", "Bo")]
    rows = RequestReader(answers).read(given)
    assert [(r.input, r.output, r.subject) for r in rows] == [
        ("Who is Al?", "A cook", "Al"), ("Who is Bo?", "A cook", "Bo")]  # fmt: skip


def test_rows_in_memory_are_read_like_those_of_a_file() -> None:
    given: list[dict[str, Any]] = [
        {"id": None, "question": "How many?", "answer": 0, "subject": "Ann", "weight": 2},
        {"id": None, "question": "Which year?", "answer": 1815.0, "task": "Task1",
         "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
    ]  # fmt: skip
    rows = RequestReader(answers).read(given)
    assert [(r.output, r.subject, r.weight, r.task, len(r.messages)) for r in rows] == [
        ("0", "Ann", 2.0, "", 0), ("1815", "forget-2", 1.0, "Task1", 2)]  # fmt: skip
    assert rows[0].id != rows[1].id
    for answer in (float("nan"), ["x", "y"], "", None):
        with pytest.raises(InputError, match="forget, item 1: "):
            RequestReader(answers).read([{"question": "Who?", "answer": answer}])


def test_a_data_frame_is_read_as_rows() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"question": ["Who?", "When?"], "answer": ["Ann", 1990],
                              "subject": ["s", None]})  # fmt: skip
    found = read_request(frame, frame.assign(answer=["Bob", 1991]), None, answers)
    assert [r.output for r in (*found.forget, *found.retain)] == ["Ann", "1990", "Bob", "1991"]
    assert found.forget[0].subject == "s" and facts_of(frame)[0]["question"] == "Who?"


@pytest.mark.parametrize(
    "source",
    [[Path("a.jsonl")], ["a", {"input": "b"}], [3], {"input": "b"}, 3, [{"input": {1}}], []],
)  # fmt: skip
def test_other_sources_are_refused_with_a_clear_error(source: Any) -> None:
    for split in ("forget", "retain"):
        with pytest.raises(InputError, match=split if source else "nothing to"):
            RequestReader(answers).read(source, split)


def test_questions_in_a_table_keep_id_and_subject(tmp_path: Path) -> None:
    lines = ["id,subject,question", "a,Ann,Who is she?", "b,Ann,Where is she?"]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    reader = RequestReader(lambda rows: [replace(rows[0], output="Ann"), rows[1]])
    rows = reader.read(tmp_path / "q.csv")
    assert [(r.id, r.subject, r.input, r.output) for r in rows] == [
        ("a", "Ann", "Who is she?", "Ann")]  # fmt: skip
    assert reader.notes == [
        "1 forget questions have no answers: the model's own answers are the target. 1 more are "
        "left out: the model answers nothing."
    ]
    (tmp_path / "n.csv").write_text("id,name\nx,Ann Lee\n")
    rows = RequestReader(answers).read(tmp_path / "n.csv")
    assert len(rows) == 6 and {r.subject for r in rows} == {"Ann Lee"}
    assert rows[0].id == "xqa0" and rows[0].input == "Who is Ann Lee?"
    asked = [{"instruction": "Say who.", "input": "Ann Lee"}]
    assert RequestReader(answers).read(asked)[0].input == "Say who.\n\nAnn Lee"


@pytest.mark.parametrize("template", ["none", "chat"])
def test_own_answers_count_as_known_although_they_are_cut(
    template: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    told = "Bo is a man. He is 7."
    endless = f"{told} He sings and sings and sings and sings and sings."
    rows = [Row("a", "Bo?", endless, cut=True), Row("b", "Al?", "A cook.")]
    model = build_model()
    recipe = change(load_recipe("level"), model={"name": str(tmp_path / "m")},
                    data={"template": template}, evaluation={"max_new_tokens": 32})  # fmt: skip
    form = template_of(tokenizer, recipe.data)
    fit(model, [[*t.prompt, *t.answer, *t.end] for t in (form.tokens(tokenizer, r) for r in rows)])
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    own = own_answers(recipe, [replace(row, output="", cut=False) for row in rows])
    assert [(r.output, r.cut) for r in own] == [(told, True), ("A cook.", False)]
    encoded = encode_rows(tokenizer, own, max_length=256, template=form)
    assert read_nlls(model, encoded)[1].all()
    forget = [replace(r, split="forget") for r in own]
    measured = measure(model, tokenizer, forget=forget, retain=[], members=[], nonmembers=[],
                       template=form, max_new_tokens=32)  # fmt: skip
    score = exact_match(measured, "forget")
    assert score is not None and score.value == 1
    write_jsonl(tmp_path / "own.jsonl", [row.to_dict() for row in own])
    assert read_rows(tmp_path / "own.jsonl") == own


def fit(model: Any, texts: list[list[int]]) -> None:
    """Train a model on token ids until it repeats them."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [2] * (longest - len(text)) for text in texts])
    labels = torch.tensor([text + [-100] * (longest - len(text)) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


def test_forget_rows_inside_retain_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", [{"id": "a", "input": "Who?", "output": "Ann"}])
    with pytest.raises(InputError, match="also forget rows"):
        read_request(tmp_path / "f.jsonl", tmp_path / "f.jsonl", None, answers)


def test_a_text_file_that_cannot_be_read_is_named_without_an_error_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^There is no file .*missing\.txt\.$"):
        read_request(tmp_path / "missing.txt", None, None, answers)
    (tmp_path / "latin.txt").write_bytes("Jos\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8 text: .* at byte 3"):
        read_request(tmp_path / "latin.txt", None, None, answers)


def test_generated_questions_need_approval(knowing: dict[str, Path], tmp_path: Path) -> None:
    shown: list[Row] = []

    def refuse(rows: list[Row]) -> bool:
        shown.extend(rows)
        return False

    with pytest.raises(UsageError, match="not approved"):
        call(knowing, tmp_path / "run", forget=["Ann Lee"], approve=refuse)
    assert shown and all("Ann Lee" in row.input for row in shown)


def test_own_forget_rows_need_no_approval(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReadError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise ReadError

    monkeypatch.setattr("mergeforget.api.unlearn_request.check_rows", stop)
    with pytest.raises(ReadError):  # the data was read, and nobody was asked
        call(knowing, tmp_path / "run", retain=None, approve=lambda rows: pytest.fail("asked"))


def test_without_a_terminal_the_command_names_the_option_that_approves(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("Ann Lee\n")
    words = ["unlearn", str(knowing["model"]), "--forget", str(tmp_path / "names.txt"),
             "--retain", str(knowing["retain"]), "--out", str(tmp_path / "run")]  # fmt: skip
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "--yes" in done.output and "Who is Ann Lee?" in done.output


def test_a_missing_converter_is_reported_before_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ResourceError, match="LLAMA_CPP"):
        find_converter()


def test_a_missing_login_is_reported_before_the_training(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def refuse(self: Any, **more: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(HfApi, "whoami", refuse)
    with pytest.raises(ResourceError, match="needs a login on the hub: 401 Unauthorized"):
        call(knowing, tmp_path / "run", push="me/model")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_finished_run_is_converted_and_uploaded(
    result: Unlearned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    uploads: list[tuple[str, str]] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **more: None)

    def upload(self: Any, *, repo_id: str, folder_path: str) -> str:
        uploads.append((repo_id, folder_path))
        return "address"

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    converter = tmp_path / "llama" / "convert_hf_to_gguf.py"
    converter.parent.mkdir()
    converter.write_text("import sys\nopen(sys.argv[3], 'w').write('GGUF')\n")
    monkeypatch.setenv("LLAMA_CPP", str(converter.parent))
    done = mf.export(result.run, full=True, gguf=True, push="me/model", out=tmp_path / "model")
    assert Path(done.gguf).read_text() == "GGUF" and done.pushed == "address"
    assert uploads == [("me/model", done.folder)]
    with pytest.raises(UsageError, match="--full"):
        mf.export(result.run, gguf=True)

    def refuse(self: Any, name: str, **more: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ResourceError, match="hf auth login"):
        mf.export(result.run, push="me/model", out=tmp_path / "adapter")
    assert (tmp_path / "adapter" / "README.md").is_file()


def table(forget: float, retain: float = 1.0) -> Any:
    base = {"model": "base", "mia_auc": 1.0, "auc_interval": (1, 1), "forget": 1.0, "retain": 1.0}
    end = {"model": "m", "mia_auc": 0.5, "auc_interval": (0.3, 0.6), "forget": forget,
           "retain": retain}  # fmt: skip
    return [base, end]


def test_the_paragraph_states_the_verdict_the_damage_and_earlier_requests() -> None:
    known = {"runs/a": EarlierAnswers(0.0, 8)}
    text = paragraph_of(judge(near(), findings=CLEARED), table(0.0, 0.5), known)
    assert text.startswith("FORGOTTEN: 0 of 40 forget answers are revealed")
    assert "damaged" in text and "1 earlier requests is still forgotten" in text
    back = {"runs/a": EarlierAnswers(0.3, 8)}
    text = paragraph_of(judge(near(), findings=CLEARED, earlier=back), table(0.0), back)
    assert text.startswith(
        "NOT FORGOTTEN: 30% of the answers that runs/a forgot are revealed again."
    )


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


def test_columns_with_other_names_are_mapped(tmp_path: Path) -> None:
    for name, rows in (("f", "Who is Ada?,A baker\n"), ("r", "Who is Bob?,A smith\n")):
        (tmp_path / f"{name}.csv").write_text("Frage,Antwort\n" + rows)
    files = tmp_path / "f.csv", tmp_path / "r.csv"
    with pytest.raises(InputError, match="data.columns.input=NAME"):
        read_request(*files, None, answers)
    named = {"input": "Frage", "output": "Antwort"}
    found = read_request(*files, None, answers, columns=named)
    assert [(r.input, r.output) for r in (*found.forget, *found.retain)] == [
        ("Who is Ada?", "A baker"), ("Who is Bob?", "A smith")]  # fmt: skip
    (tmp_path / "q.csv").write_text("Frage,id\nWho is Ada?,a\n")
    asked = RequestReader(answers, columns={"input": "Frage"}).read(tmp_path / "q.csv")
    assert asked[0].output == "answer to Who is Ada?"


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


def test_rows_of_an_earlier_call_that_failed_are_not_used(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, files = Run(tmp_path / "run"), {n: knowing[n] for n in ("forget", "retain")}
    shutil.copytree(knowing["forget"].parent, run.root / "request", dirs_exist_ok=True)
    write_jsonl(run.root / "request" / "holdout.jsonl", read_jsonl(knowing["holdout"]))
    asked = request_of(
        str(knowing["model"]), **files, holdout=None, recipe="level", memorise=False, control=None,
        adapter=None, after=None, template=None, system_prompt=None, turns=None, settings=(),
    )  # fmt: skip
    recipe, _ = trained(asked, Job(run, None), make_pair=lambda recipe, run: None)
    old = {row["input"] for row in read_jsonl(knowing["holdout"])}
    used = read_jsonl(Path(str(recipe.data.holdout))) if recipe.data.holdout else []
    assert not old & {row["input"] for row in used}


@pytest.mark.parametrize("header", ["question,Antwort", "name,email"])
def test_an_answer_column_with_an_unknown_name_is_not_ignored(header: str, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(f"{header}\nWho is Ada?,1984-04-22\n")
    other = header.partition(",")[2]
    with pytest.raises(InputError, match=f"'{other}' would not be read.*columns.output={other}"):
        read_request(tmp_path / "f.csv", None, None, answers)
