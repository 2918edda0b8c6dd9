"""`unlearn` leads from a model and rows to a verdict, and resumes after an interruption."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import build_tokenizer
from memorising import people

import mergeforget as mf
from mergeforget.adapter import read_adapter
from mergeforget.api.delivery import (
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
from mergeforget.api.unlearn_request import (
    _repeated_twins,
    differences,
    request_of,
    run_of,
    trained,
)
from mergeforget.api.verdict import paragraph_of
from mergeforget.attack.headline import run_verdict
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, AnswerLikelihood, Measured, Row
from mergeforget.errors import InputError, ResourceError, UsageError
from mergeforget.evaluate.verdict import judge
from mergeforget.evaluate.verdict_figures import EarlierAnswers
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.metrics._patterns import Patterns
from mergeforget.models import load_model
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.train import pair

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


def test_another_request_does_not_overwrite_a_run(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "other.jsonl", read_jsonl(knowing["forget"])[:3])
    with pytest.raises(InputError, match="another request"):
        call(knowing, result.run.root, forget=tmp_path / "other.jsonl")


def test_what_differs_from_the_stored_request_is_named(
    result: Unlearned, knowing: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = result.run.root
    for options, said in (
        ({"settings": [*SMALL[:-1], "search.weights=[[1, 0]]"]},
         "--set search.weights was [[0.5, 0.5]], now [[1, 0]]"),
        ({"settings": SMALL[1:]}, "--set pair.over.lora.r was 4, now not given"),
        ({"memorise": True}, "--memorise was not given, now given"),
        ({"holdout": None}, "the rows of --holdout differ"),
        ({"recipe": "zjuklab"}, "--recipe was level, now zjuklab"),
    ):  # fmt: skip
        sources = {n: knowing[n] for n in ("forget", "retain", "holdout")}
        with pytest.raises(InputError, match=re.escape(said)):
            unlearn(knowing["model"], out=run, **({"settings": SMALL} | sources | options))
    stored = read_json(run / "request.json")
    assert differences(stored, stored | {"settings": stored["settings"][::-1]}) == []
    monkeypatch.chdir(knowing["model"].parent)  # the same folder by another path
    assert differences(stored, stored | {"model": "model"}) == []


def test_two_calls_on_a_new_folder_do_not_mix_their_rows(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    with run.lock(), pytest.raises(ResourceError, match="is in use"):
        call(knowing, run.root)
    assert not (run.root / "request.json").exists()

    def checked(*arguments: Any) -> Run:  # another call begins after this one has looked
        found = run_of(*arguments)
        write_json(run.root / "request.json", {"model": "another"})
        return found

    monkeypatch.setattr("mergeforget.api.unlearn.run_of", checked)
    with pytest.raises(InputError, match="--memorise was not given|MODEL was another"):
        call(knowing, run.root)
    assert read_json(run.root / "request.json") == {"model": "another"}  # it is not withdrawn


def test_a_wrong_request_is_refused_before_the_training_and_can_be_corrected(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, began = tmp_path / "run", []

    def train(*_: Any, **__: Any) -> None:
        began.append(1)
        raise ResourceError("the training begins")

    monkeypatch.setattr(pair, "train_pair", train)
    both = tmp_path / "both.jsonl"
    shared = read_jsonl(knowing["retain"])[0] | {"split": "holdout"}
    write_jsonl(both, [*read_jsonl(knowing["holdout"]), shared])
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InputError, "There is no model at", {"control": str(tmp_path / "nosuch")}),
        (UsageError, "promts", {"attacks": ["promts"]}),
        (InputError, "rows are in both", {"holdout": both}),
    ]
    for error, message, options in wrong:
        with pytest.raises(error, match=message):
            call(knowing, out, **options)
        assert not (out / "request.json").exists() and not began
    with pytest.raises(ResourceError, match="the training begins"):
        call(knowing, out)


def test_a_request_that_the_training_refuses_can_be_corrected(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, answers = tmp_path / "run", iter([InputError("too short"), ResourceError("disk full")])

    def train(*_: Any, **__: Any) -> None:
        raise next(answers)

    monkeypatch.setattr(pair, "train_pair", train)
    with pytest.raises(InputError, match="too short"):
        call(knowing, out)
    assert not (out / "request.json").exists()
    with pytest.raises(InputError, match="is not an adapter"):
        call(knowing, out, over=tmp_path / "nosuch")
    with pytest.raises(ResourceError, match="disk full"):
        call(knowing, out, system_prompt=None)
    assert (out / "request.json").exists()  # to be continued


def test_rows_that_only_the_recipe_names_are_not_replaced_by_generated_ones(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"out": tmp_path / "run", "forget": knowing["forget"]}
    for key, option in (("data.holdout", "--holdout"), ("model.name", "MODEL")):
        with pytest.raises(UsageError, match=f"--set {key} has no effect here. Give {option}"):
            unlearn(knowing["model"], settings=[f"{key}=x"], **options)
    recipe = change(load_recipe("level"), data={"holdout": str(knowing["holdout"])})
    options |= {"retain": knowing["retain"], "recipe": recipe}
    with pytest.raises(UsageError, match="The recipe sets data.holdout to .* Add --holdout"):
        unlearn(knowing["model"], **options)
    options |= {"forget": [knowing["forget"], knowing["holdout"]]}
    with pytest.raises(UsageError, match="The recipe sets data.holdout"):
        mf.unlearn_sequence(knowing["model"], **options)


def test_a_masked_language_model_is_refused_before_the_training(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16)  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    build_tokenizer().save_pretrained(tmp_path / "bert")
    files: dict[str, Any] = {n: knowing[n] for n in ("forget", "retain", "holdout")}
    faults = "is not a causal language model|cannot be evaluated"  # by its weights
    with pytest.raises(InputError, match=faults):
        unlearn(tmp_path / "bert", out=tmp_path / "run", **files)
    assert not (tmp_path / "run" / "request.json").exists()


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
    with pytest.raises(InputError, match="another sequence: --merge was end, now each"):
        call_sequence(knowing, halves, out, merge="each")


def test_a_recipe_that_names_columns_reads_the_rows_of_each_request(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a request are written with the usual names of columns."""
    files: dict[str, Any] = {"forget": [], "retain": []}
    for name in ("forget", "retain"):
        for i, row in enumerate(read_jsonl(knowing[name])[:2]):
            path = tmp_path / f"{name}{i}.jsonl"
            write_jsonl(path, [{"q1": row["input"], "a1": row["output"]}])
            files[name].append(path)
    recipe = tmp_path / "mine.yaml"
    save_recipe(load_recipe("level", ["data.columns.input=q1", "data.columns.output=a1"]), recipe)
    asked = []

    def request(_: Any, *, forget: Path, settings: Any, recipe: Any, **__: Any) -> None:
        columns = load_recipe(recipe, settings).data.columns
        asked.append(read_rows(forget, split="forget", columns=columns)[0].input)
        raise InputError("the first request")

    monkeypatch.setattr("mergeforget.api.sequence.unlearn", request)
    with pytest.raises(InputError, match="the first request"):
        mf.unlearn_sequence(knowing["model"], **files, recipe=recipe, out=tmp_path / "seq")
    assert asked == [read_jsonl(knowing["forget"])[0]["input"]]


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
    with pytest.raises(InputError, match="another request: the weights of --under differ"):
        call(knowing, run.root, attacks=[], **(sides | {"under": trained_pair.over}))


def test_an_existing_adapter_is_part_of_the_request(
    result: Unlearned, knowing: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match="the weights of --over differ"):
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
        with pytest.raises(InputError, match="the weights of --adapter or --after differ"):
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
    assert "damaged" in text and "1 earlier request is still forgotten" in text
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
