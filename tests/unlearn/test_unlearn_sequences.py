"""Requests one after the other: each tests the earlier ones again."""

from __future__ import annotations

import json
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
from unlearning import call

import mergeforget as mf
from mergeforget.api.earlier import (
    folded_base,
    revealed,
    share_of,
    start_of,
)
from mergeforget.api.sequence import UnlearnedSequence
from mergeforget.api.sequence_merge import joined
from mergeforget.api.unlearn import Unlearned, paragraph_of
from mergeforget.api.unlearn_request import run_of
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, AnswerLikelihood, Measured, Row
from mergeforget.errors import InputError, UsageError
from mergeforget.evaluate.verdict import judge
from mergeforget.evaluate.verdict_figures import EarlierAnswers
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.metrics._patterns import Patterns
from mergeforget.models import load_model
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score

CLEARED = {"prompts": "none found", "relearn": "none found"}


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
