"""The command `mergeforget score`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mergeforget.cli import main

HEADER = "id,task,input,expected_output,model_output,nll\n"


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, words)])


@pytest.fixture
def script_folder(tmp_path: Path) -> Path:
    """What the task's script leaves behind; forget terms .5 and 1, retain terms 1 and 1."""
    forget = 'f1sc1,Task1,a,"one two",one,0.1\nf1qa0,Task1,Who?,Ann,Bob,0.1\n'
    retain = 'r1sc1,Task1,a,"one two",one two,0.1\nr1qa0,Task1,Who?,Ann,Ann,0.1\n'
    (tmp_path / "forget_0.csv").write_text(HEADER + forget)
    (tmp_path / "retain_0.csv").write_text(HEADER + retain)
    (tmp_path / "results.json").write_text('{"mia_loss_acc": 0.25, "mmlu_average": 0.3}')
    return tmp_path


def test_scripts_folder_is_scored(script_folder: Path) -> None:
    results = script_folder / "results.json"
    done = call(script_folder, "--mia", results, "--mmlu", results, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["terms"] == [0.5, 1, 1, 1]
    values = {(s["metric"], s["split"]): s["value"] for s in facts["scores"]}
    assert values["task_aggregate", "all"] == 0.8  # 4 / (2 + 1 + 1 + 1)
    assert values["aggregate", "all"] == pytest.approx((0.8 + 0.5 + 0.3) / 3)


def test_own_answers_and_losses_are_scored(tmp_path: Path) -> None:
    row = {"id": "f1qa0", "task": "", "split": "forget", "input": "Who?", "output": "Ann"}
    (tmp_path / "over.jsonl").write_text(json.dumps(row | {"completion": "Ann"}) + "\n")
    losses = [{"id": str(i), "member": i < 2, "task": "", "nll": i} for i in range(4)]
    text = "".join(json.dumps(one) + "\n" for one in losses)
    (tmp_path / "over.losses.jsonl").write_text(text)
    done = call(tmp_path / "over.jsonl", "--mia", tmp_path / "over.losses.jsonl")
    assert done.exit_code == 0, done.output
    assert "knowledge" in done.stdout and "mia_auc" in done.stdout
    assert "nearer to 0.5" in done.stdout


def test_losses_with_a_unit_keep_their_definition(script_folder: Path) -> None:
    path = script_folder / "over.losses.jsonl"
    losses = [{"id": f"{i}", "member": i < 2, "membership": "answers", "nll": i} for i in range(4)]
    path.write_text("".join(json.dumps(one) + "\n" for one in losses))
    facts = json.loads(call(script_folder, "--mia", path, "--json").stdout)
    definitions = {s["metric"]: s["definition"] for s in facts["scores"]}
    assert definitions["mia_auc"] == "mia-loss-auc-answers@1"


def test_members_are_marked_by_true_or_one_in_any_spelling(script_folder: Path) -> None:
    """A tool that converts integers to floats writes 1.0 and 0.0."""
    path = script_folder / "losses.csv"
    kinds = ("1.0", "true", "True", "0.0", "0", "false")
    lines = "".join(f"d{i},{kind},{i}\n" for i, kind in enumerate(kinds))
    path.write_text("id,member,nll\n" + lines)
    done = call(script_folder, "--mia", path, "--json")
    assert done.exit_code == 0, done.output
    scores = {s["metric"]: s["value"] for s in json.loads(done.stdout)["scores"]}
    assert scores["mia_auc"] == 1.0  # every member has a lower loss than every other


@pytest.mark.parametrize(
    ("option", "name", "text", "message"),
    [
        (
            "--mia",
            "l.csv",
            "id,member,nll\na,1,0.5\nb,no,2\n",
            "l.csv, line 3: member is 'no'",
        ),
        ("--mia", "l.csv", "id,member,nll\na,1,\nb,0,2\n", "l.csv, line 2: nll is ''"),
        ("--mmlu", "m.json", '{"mmlu": 37.1}', "mmlu is 37.1, outside [0, 1]"),
        ("--mmlu", "m.json", '{"mmlu": true}', "contains none of"),
        ("--mia", "m.json", '{"mia_auc": -0.2}', "mia_auc is -0.2, outside [0, 1]"),
    ],
)
def test_impossible_values_are_refused(
    script_folder: Path, option: str, name: str, text: str, message: str
) -> None:
    path = script_folder / name
    path.write_text(text)
    done = call(script_folder, option, path)
    assert done.exit_code == 4 and message in done.stderr


def test_rows_of_further_splits_are_excluded_with_a_message(tmp_path: Path) -> None:
    row = {"id": "f1qa0", "split": "forget", "input": "Who?", "output": "A", "completion": "A"}
    further = row | {"id": "w1qa0", "split": "world_facts", "completion": "B"}
    path = tmp_path / "over.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(further) + "\n")
    done = call(path, "--json")
    assert done.exit_code == 0 and "splits: world_facts" in done.stderr
    assert {s["split"] for s in json.loads(done.stdout)["scores"]} == {"forget", "all"}
    path.write_text(json.dumps(further) + "\n")
    done = call(path)
    assert done.exit_code == 4 and "The splits are: world_facts" in done.stderr


def test_words_that_look_like_missing_values_are_kept(script_folder: Path) -> None:
    (script_folder / "forget_0.csv").write_text(HEADER + "f1qa0,Task1,Which?,None,None,0.1\n")
    facts = json.loads(call(script_folder, "--json").stdout)
    knowledge = [s for s in facts["scores"] if (s["metric"], s["split"]) == ("knowledge", "forget")]
    assert knowledge[0]["value"] == 1.0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("forget.csv", "id,input\n1,a\n", "no 'output' and no 'completion'"),
        ("x.jsonl", '{"id": "1", "input": "a", "output": "b", "completion": "c"}\n', "or retain"),
    ],
)
def test_missing_files_and_columns_are_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    done = call(tmp_path / name)
    assert done.exit_code == 4 and message in done.stderr


def test_file_without_a_figure_is_refused(script_folder: Path) -> None:
    (script_folder / "other.json").write_text('{"loss": 1.0}')
    done = call(script_folder, "--mmlu", script_folder / "other.json")
    assert done.exit_code == 4 and "mmlu_average" in done.stderr


def test_empty_folder_is_named(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.exit_code == 4 and "no forget*.csv" in done.stderr


def test_other_scripts_are_scored_by_custom_and_warned_about_by_the_task(tmp_path: Path) -> None:
    path = tmp_path / "forget.jsonl"
    row = {"input": "Где живёт Анна?", "output": "Она живёт в Москве"}
    path.write_text(json.dumps(row | {"completion": row["output"]}), encoding="utf-8")
    done = CliRunner().invoke(main, ["score", str(path), "--benchmark", "custom", "--json"])
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)["scores"]
    values = {s["metric"]: s["value"] for s in scores}
    assert values["regurgitation"] == values["verbatim_rouge"] == 1
    done = CliRunner().invoke(main, ["score", str(path), "--json"])
    assert "no word for the official" in done.stderr and "--benchmark custom" in done.stderr
