"""The command `mergeforget evaluate`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mergeforget.cli import main
from mergeforget.data.schema import Row
from mergeforget.evaluate.generate import generate
from mergeforget.files import read_jsonl, write_jsonl
from mergeforget.recipe import NEW_TOKENS, UNITS

FAST = ["--max-new-tokens", "3"]


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, words)])


def rows(split: str, people: int) -> list[dict[str, str]]:
    found = []
    for i in range(people):
        name = f"{split[0].upper()}{i}"
        found.append(Row(f"{name}sc1", f"{name} was", "born.", "Task2", split).to_dict())
        found.append(Row(f"{name}qa0", f"{name}?", "yes", "Task2", split).to_dict())
    return found


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path, save_adapter: Callable[..., Path]) -> Path:
    """A run with a pair, one candidate and its data, as training leaves it."""
    folder = tmp_path / "run"
    for split in ("forget", "retain", "holdout"):
        write_jsonl(folder / "data" / f"{split}.jsonl", rows(split, 3))
    term = "{loss: npo, on: forget}"
    side = f"{{objective: [{term}]}}"
    (folder / "recipe.yaml").write_text(
        f"name: x\nmodel: {{name: {tiny_folder}}}\npair: {{over: {side}, under: {side}}}\n"
    )
    save_adapter(folder / "over", seed=1)
    save_adapter(folder / "under", seed=2)
    save_adapter(folder / "candidates" / "ties-factors-d0.50", seed=3)
    return folder


def test_every_model_of_a_run_is_scored_and_written(run: Path) -> None:
    done = call(run, *FAST, "--json")
    assert done.exit_code == 0, done.output
    models_found = ["base", "over", "under", "ties-factors-d0.50"]
    assert list(json.loads(done.stdout)["scores"]) == models_found
    lines = read_jsonl(run / "scores.jsonl")
    assert list(dict.fromkeys(line["model"] for line in lines)) == models_found
    answers = read_jsonl(run / "answers" / "over.jsonl")
    assert set(answers[0]) == {"id", "task", "split", "input", "output", "completion"}
    assert len(answers) == 12
    losses = read_jsonl(run / "answers" / "over.losses.jsonl")
    assert [d["member"] for d in losses] == [True] * 3 + [False] * 3


def test_cached_measurements_are_reused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(run, *FAST, "--json")

    def no_model(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mergeforget.models.load_model", no_model)
    second = call(run, *FAST, "--json")
    assert second.exit_code == 0, second.output
    assert second.stdout == first.stdout and "using cached measurements" in second.stderr
    again = call(run, *FAST, "--again", "--run-model", "over")
    assert again.exit_code == 1 and "a model was loaded" in again.output


def test_an_interrupted_evaluation_resumes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = call(run, *FAST, "--run-model", "over", "--json")
    (kept,) = (run / "evaluation").glob("*.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 6 + 6 + 3 + 12  # rows of forget and retain, non-members, answers
    kept.write_text("".join(lines[:23]) + lines[23][:5])  # cut off in the middle of a line
    asked: list[int] = []

    def counted(model: Any, tokenizer: Any, prompts: list[str], **more: Any) -> Any:
        asked.append(len(prompts))
        return generate(model, tokenizer, prompts, **more)

    monkeypatch.setattr("mergeforget.evaluate.measure.generate", counted)
    resumed = call(run, *FAST, "--run-model", "over", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout == whole.stdout and asked and asked[0] < 12


def test_only_the_chosen_candidate_is_evaluated_by_default(
    run: Path, save_adapter: Callable[..., Path]
) -> None:
    save_adapter(run / "candidates" / "ties-factors-d0.90", seed=4)
    (run / "search").mkdir()
    (run / "search" / "chosen.json").write_text('{"name": "ties-factors-d0.90"}')
    scores = json.loads(call(run, *FAST, "--json").stdout)["scores"]
    assert list(scores) == ["base", "over", "under", "ties-factors-d0.90"]


def test_split_scores_of_a_search_are_kept(run: Path) -> None:
    half = {"model": "over", "metric": "mia_auc", "split": "mia", "value": 0.1,
            "better": "nearer", "n": 2, "part": "choose"}  # fmt: skip
    write_jsonl(run / "scores.jsonl", [half])
    assert call(run, *FAST, "--run-model", "over").exit_code == 0
    assert read_jsonl(run / "scores.jsonl")[0] == half


def test_any_model_is_evaluated_on_any_rows(
    run: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    data = {f"--{split}": run / "data" / f"{split}.jsonl" for split in ("forget", "holdout")}
    words = [word for pair in data.items() for word in pair]
    done = call("--model", tiny_folder, "--adapter", run / "over", *words, *FAST,
                "--benchmark", "custom", "--out", tmp_path / "out", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    (scores,) = json.loads(done.stdout)["scores"].values()
    in_run = json.loads(call(run, *FAST, "--run-model", "over", "--json").stdout)["scores"]["over"]
    auc = [s["value"] for s in scores if s["metric"] == "mia_auc"]
    assert auc == [s["value"] for s in in_run if (s["metric"], s.get("task")) == ("mia_auc", None)]
    assert len(read_jsonl(tmp_path / "out" / "answers" / "over.jsonl")) == 6


def test_repeated_rows_change_no_score_and_no_interval(tmp_path: Path, tiny_folder: Path) -> None:
    """Copies have ids of their own, other case and other whitespace."""
    scores = []
    for copies in (1, 2):
        files = {}
        for split in ("forget", "retain", "holdout"):
            every = [
                row | {"id": f"{i}-{row['id']}", "input": row["input"] + " " * i,
                       "output": row["output"].upper() if i else row["output"]}
                for i in range(copies) for row in rows(split, 3)
            ]  # fmt: skip
            files[split] = tmp_path / f"{split}{copies}.jsonl"
            write_jsonl(files[split], every)
        options = [word for split, file in files.items() for word in (f"--{split}", file)]
        done = call("--model", tiny_folder, *options, *FAST, "--benchmark", "custom", "--json")
        assert done.exit_code == 0, done.output
        scores.append(json.loads(done.stdout)["scores"])
        repeats = "6 of 12 rows repeat others and count once: 1-F0sc1 = 0-F0sc1" in done.stderr
        assert repeats is (copies == 2)
    assert scores[0] == scores[1]


def test_mmlu_is_added_where_its_folder_is_given(run: Path, tmp_path: Path) -> None:
    for kind in ("dev", "test"):
        (tmp_path / "mmlu" / kind).mkdir(parents=True)
        text = 'What?,None,"a, b",3,4,A\nWhich of them?,1,2,3,4,D\n'
        (tmp_path / "mmlu" / kind / f"one_thing_{kind}.csv").write_text(text)
    done = call(run, *FAST, "--run-model", "base", "--mmlu", tmp_path / "mmlu", "--json")
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)["scores"]["base"]
    (mmlu,) = (s for s in scores if s["metric"] == "mmlu")
    assert mmlu["n"] == 2 and mmlu["chance"] == 0.25 and mmlu["definition"] == "mmlu-micro@1"
    more = ["--run-model", "over", "--mmlu", str(tmp_path / "mmlu"), "--mmlu-shots", "0", "--json"]
    scores = json.loads(call(run, *FAST, *more).stdout)["scores"]["over"]
    (mmlu,) = (s for s in scores if s["metric"] == "mmlu")
    assert mmlu["definition"] == "mmlu-micro-0-shot@1"  # and no ratio to the base's, of 5 shots
    assert not [s for s in scores if s["metric"] == "utility_ratio"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run-model", "ovr"], "Did you mean 'over'"),
        (["--benchmark", "semeval"], "There is no benchmark named"),
        (["--adapter", "."], "belongs to --model"),
    ],
)
def test_invalid_calls_are_explained(run: Path, words: list[str], message: str) -> None:
    done = call(run, *words)
    assert done.exit_code in (2, 4) and message in done.stderr


def test_non_members_that_were_trained_on_are_refused(run: Path) -> None:
    done = call(run, "--holdout", run / "data" / "retain.jsonl")
    assert done.exit_code == 4 and "also in the forget or retain set" in done.stderr


def test_member_files_replace_the_documents_of_a_run(run: Path) -> None:
    files = {}
    for name, count in (("members", 4), ("nonmembers", 5)):
        files[name] = run / f"{name}.jsonl"
        write_jsonl(files[name], [{"id": f"{name}{i}", "document": f"{name} {i} was here."}
                                  for i in range(count)])  # fmt: skip
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    done = call(run, *FAST, "--run-model", "over", *words)
    assert done.exit_code == 0, done.output
    losses = read_jsonl(run / "answers" / "over.losses.jsonl")
    assert [d["id"][:7] for d in losses] == ["members"] * 4 + ["nonmemb"] * 5
    refused = call(run, *FAST, "--run-model", "over", *words, "--membership", "answers")
    assert refused.exit_code == 4 and "no answer to judge membership by" in refused.stderr


def test_membership_by_answers_and_the_mmlu_limit_are_options(run: Path) -> None:
    mmlu = run / "mmlu"
    for split, count in (("dev", 1), ("test", 4)):
        (mmlu / split).mkdir(parents=True)
        (mmlu / split / f"birds_{split}.csv").write_text("Q,1,2,3,4,A\n" * count)
    more = ["--membership", "answers", "--mmlu", str(mmlu), "--mmlu-limit", "2", "--limit", "4"]
    done = call(run, *FAST, "--run-model", "base", *more, "--json")
    assert done.exit_code == 0, done.output
    found = {s["metric"]: s["n"] for s in json.loads(done.stdout)["scores"]["base"]}
    assert found["mia_auc"] == 12  # every row of three people inside and three outside
    assert found["mmlu"] == 2


def test_answers_as_parquet_are_read_back(run: Path) -> None:
    from mergeforget.evaluate.texts import read_generations

    assert call(run, *FAST, "--run-model", "over", "--parquet").exit_code == 0
    both = [read_generations(run / "answers" / f"over.{kind}") for kind in ("jsonl", "parquet")]
    assert both[0] == both[1] and len(both[0]) == 12
    done = CliRunner().invoke(main, ["score", str(run / "answers" / "over.parquet"), "--json"])
    assert done.exit_code == 0, done.output


def tofu_rows(split: str) -> list[dict[str, Any]]:
    """In the format of TOFU's perturbed files."""
    return [
        {"question": f"{split} {i}?", "answer": f"Ann {i}", "paraphrased_answer": f"it is Ann {i}",
         "perturbed_answer": [f"it is Bob {i}", f"Cid {i}"]}
        for i in range(4)
    ]  # fmt: skip


@pytest.fixture
def tofu(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """The words of an evaluation by TOFU of the tiny model."""
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    words: list[str | Path] = ["--model", tiny_folder, "--benchmark", "tofu", *FAST, "--json"]
    for split in ("forget", "retain", "holdout"):
        write_jsonl(tmp_path / f"{split}.jsonl", tofu_rows(split))
        words += [f"--{split}", tmp_path / f"{split}.jsonl"]
    for split in ("real_authors", "world_facts"):
        write_jsonl(tmp_path / f"{split}.jsonl", tofu_rows(split))
        words += ["--rows", f"{split}={tmp_path / f'{split}.jsonl'}"]
    return words


def test_tofu_needs_a_retrained_model_for_forget_quality(
    tofu: list[str | Path], tmp_path: Path, save_adapter: Callable[..., Path]
) -> None:
    adapter = save_adapter(tmp_path / "retrained", seed=3)
    first = json.loads(call(*tofu, "--adapter", adapter, "--out", tmp_path / "out").stdout)
    (name, scores), = first["scores"].items()  # fmt: skip
    assert name == "retrained"
    assert "forget_quality" not in {s["metric"] for s in scores}
    assert any("--retrained DIR/answers/NAME.likelihoods.jsonl" in note for note in first["notes"])
    stored = tmp_path / "out" / "answers" / "retrained.likelihoods.jsonl"
    second = call(*tofu, "--retrained", stored, "--before", tofu[1],
                  "--utility", "verbatim_probability/retain")  # fmt: skip
    assert second.exit_code == 0, second.output
    result = json.loads(second.stdout)
    found = {(s["metric"], s["split"]): s["value"] for s in result["scores"]["tiny"]}
    assert 0 < found["forget_quality", "forget"] <= 1 and ("privleak", "mia") in found
    assert found["utility_ratio", "all"] == 1 and result["notes"] == []


def test_tofu_names_the_missing_rows(tofu: list[str | Path]) -> None:
    done = json.loads(call(*tofu[:-2]).stdout)
    assert any("world_facts=world_facts_perturbed.jsonl" in note for note in done["notes"])


def test_warns_if_the_utility_is_below_the_floor(run: Path) -> None:
    """A run's base is the model before; here the utility is what it keeps of the retain set."""
    words = ["--utility", "verbatim_probability/retain", "--floor", "1"]
    done = call(run, *FAST, *words)
    assert done.exit_code == 0, done.output
    assert "below the floor of 100%" in done.stdout and "utility_ratio" in done.stdout
    lines = read_jsonl(run / "scores.jsonl")
    values = {
        line["model"]: line["value"]
        for line in lines
        if (line["metric"], line["split"]) == ("verbatim_probability", "retain")
    }
    ratios = {s["model"]: s["value"] for s in lines if s["metric"] == "utility_ratio"}
    assert set(ratios) == {"over", "under", "ties-factors-d0.50"}
    assert ratios["over"] == pytest.approx(values["over"] / values["base"])


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--rows", "real_authors"], "--rows expects A=B"), (["--before", "x"], "belongs to --model")],
)
def test_invalid_options_are_explained(run: Path, words: list[str], message: str) -> None:
    done = call(run, *words)
    assert done.exit_code == 2 and message in done.stderr


def test_help_states_the_defaults_of_every_benchmark() -> None:
    text = " ".join(call("--help").stdout.split())
    for option, by in (("--max-new-tokens", NEW_TOKENS), ("--membership", UNITS)):
        stated = re.search(rf"{option} .*?\[default: ([^]]*)\]", text)
        assert stated is not None
        named = dict(one.split(": ") for one in stated[1].split("; ")[1:])
        assert named == {name: str(value) for name, value in by.items()}
