"""The command `mergeforget attack`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mergeforget.attack.methods import ATTACKS, QUICK
from mergeforget.cli import main
from mergeforget.commands.attack import side_by_side
from mergeforget.files import read_jsonl, write_jsonl
from mergeforget.run import Run

FAST = ["--steps", "1", "--shuffles", "19", "--kinds", "plain,prefix", "--words", "1",
        "--max-new-tokens", "2", "--samples", "2", "--candidates", "3"]  # fmt: skip


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["attack", *map(str, words)])


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A separate run with a chosen candidate, whose holdout has documents of other lengths."""
    folder = tmp_path_factory.mktemp("attack") / "run"
    shutil.copytree(tiny_run.root, folder)
    here = Run(folder)
    shutil.copytree(here.over, here.candidates / "ties-factors-d0.50")
    here.search.mkdir()
    (here.search / "chosen.json").write_text(json.dumps({"name": "ties-factors-d0.50"}))
    return here


@pytest.fixture(scope="module")
def attacked(run: Run) -> dict[str, Any]:
    done = call(run.root, *FAST, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_attack_judges_the_chosen_model(attacked: dict[str, Any], run: Run) -> None:
    results = {r["attack"]: r for r in attacked["results"]}
    assert set(results) == set(ATTACKS.names())
    for name, result in results.items():
        assert result["model"] == "ties-factors-d0.50"
        assert json.loads((run.attacks / f"{name}.json").read_text())["results"] == [result]
        if result["verdict"].startswith("Not run: "):  # such as for rows that name nobody
            assert result["finding"] == "no power" and name in ("own_paraphrase", "neighbours")
            continue
        assert "claim that the data is gone" in result["verdict"]
        assert result["finding"] == "no control"  # this run has no model without the data
        assert (run.attacks / f"{name}.csv").read_text().startswith("attacked,model,")
        assert Image.open(run.attacks / f"attack-{name}.png").width == 1120
        assert (run.attacks / f"attack-{name}.svg").read_text().startswith("<?xml")
    verdict = json.loads((run.attacks / "verdict.json").read_text())["ties-factors-d0.50"]
    assert verdict["state"] in ("NOT FORGOTTEN", "NOT ENOUGH DATA")
    assert attacked["verdicts"] == {"ties-factors-d0.50": verdict["sentence"]}


def test_the_quick_set_is_bounded(run: Run, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "--quick",
        "--max-new-tokens",
        "2",
        "--steps",
        "1",
        "--out",
        tmp_path,
        "--json",
    ]
    results = json.loads(call(run.root, *words).stdout)["results"]
    assert {r["attack"] for r in results} == set(QUICK)
    settings = {r["attack"]: r["settings"] for r in results}
    assert settings["sampling"]["samples"] == 8 and settings["quantise"]["bits"] == [4]
    assert settings["relearn"]["steps"] == 1  # given arguments override those of the quick set


def test_a_part_of_the_forget_rows_is_recorded_and_other_rows_need_a_folder(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    """Attacks on a part of the rows clear no model; the control is measured on all of them."""
    rows = (run.data / "forget.jsonl").read_text().splitlines()
    first = tmp_path / "first.jsonl"
    first.write_text("\n".join(rows[:2]) + "\n")
    fast = ["quantise", "--max-new-tokens", "2", "--json"]
    for words, attacked in ((["--limit", "4"], 4), (["--forget", str(first)], 2)):
        copy = Path(shutil.copytree(run.root, tmp_path / f"run{attacked}"))
        done = call(copy, *fast, *words, "--control", tiny_folder)
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)["results"][0]
        assert result["settings"]["forget_rows"] == [attacked, len(rows)]
        control = json.loads((copy / "attacks" / "control.json").read_text())
        members = [loss for loss in control["losses"] if loss["member"]]
        assert len(members) == len(rows) / 2  # each document has two rows
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join((run.data / "retain.jsonl").read_text().splitlines()[:2]) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    words = ["--forget", str(other), "--retain", str(empty)]
    done = call(run.root, *fast, *words)
    assert done.exit_code == 4 and "Pass a folder for these results with --out" in done.stderr
    done = call(run.root, *fast, *words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output


def test_a_second_call_uses_the_cache_and_prints_the_same(
    attacked: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mergeforget.attack.target.load_model", no_model)
    again = call(run.root, *FAST, "--json")
    assert json.loads(again.stdout) == attacked and "using cached measurements" in again.stderr
    (run.attacks / "cache").rename(run.attacks / "kept")  # where earlier versions wrote them
    old = call(run.root, *FAST, "--json")
    assert json.loads(old.stdout) == attacked and "using cached measurements" in old.stderr
    other = call(run.root, *FAST, "--again")
    assert other.exit_code == 1 and "a model was loaded" in other.output


def test_the_attacked_model_cannot_be_its_own_control(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.base(), tmp_path / "copy")
    forget = run.data / "forget.jsonl"
    by_file: list[str | Path] = ["--model", run.base(), "--forget", forget]
    for words in ([run.root, "--run-model", "base"], by_file):
        done = call(*words, "--control", copy, "prompts")
        assert done.exit_code == 4 and "has the same weights as the attacked model" in done.stderr


def test_text_has_a_table_and_a_verdict(attacked: dict[str, Any], run: Run) -> None:
    done = call(run.root, "quantise", "--max-new-tokens", "2", "--run-model", "chosen")
    assert done.exit_code == 0, done.output
    assert "greedy match" in done.stdout and "Without a control" in done.stdout
    assert "NOT ENOUGH DATA" in done.stdout
    assert "quantise.json" in done.stdout


def test_the_model_before_memorising_is_the_control(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    manifest = {"base": {"name": str(tiny_folder), "path": str(tiny_folder), "memorised": True}}
    (run.manifest).write_text(json.dumps(manifest | {"stages": {}}))
    words: list[str | Path] = [
        "probe",
        "--shuffles",
        "19",
        "--run-model",
        "under",
        "--out",
        tmp_path,
        "--json",
    ]
    (result,) = json.loads(call(run.root, *words).stdout)["results"]
    assert set(result["figures"]["best_auc"]) == {"under", "before", "control"}
    assert "retain rows alone" in result["settings"]["models"]["control"]
    (adapter,) = (run.attacks / "control").glob("*/adapter_config.json")  # a LoRA trained here
    assert list(run.attacks.glob("*under*")) == [] and (tmp_path / "probe.json").exists()


def test_any_model_is_attacked_with_files(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [w for s in ("forget", "holdout") for w in (f"--{s}", run.data / f"{s}.jsonl")]
    done = call("quantise", "--model", tiny_folder, "--adapter", run.over, "--base", tiny_folder,
                *data, "--max-new-tokens", "2", "--bits", "6", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout)["results"]
    assert [row["bits"] for row in result["rows"]] == ["all", 6, "all", 6]
    assert Path("attacks/quantise.json").exists()


def test_the_table_has_one_column_per_model() -> None:
    rows = [{"model": m, "layer": n, "auc": n / 4} for m in ("over", "control") for n in (0, 1)]
    assert side_by_side(rows) == [
        {"layer": 0, "over": 0.0, "control": 0.0},
        {"layer": 1, "over": 0.25, "control": 0.25},
    ]
    several = [{"model": "over", "step": 0, "nll": 1.0, "mia_auc": 0.5}]
    assert side_by_side(several) == several


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["relern"], 2, "Did you mean 'relearn'"),
        (["--run-model", "ovr"], 4, "Did you mean 'over'"),
        (["prompts", "--steps", "3"], 2, "--steps belongs to the attack relearn"),
        (["prompts", "--kinds", "prefx"], 2, "Did you mean 'prefix'"),
        (["quantise", "--bits", "8,x"], 2, "integers such as 8,4"),
        (["relearn", "--base", "x"], 2, "belongs to --model"),
        (["relearn", "--model", "x"], 2, "not both"),
    ],
)
def test_invalid_calls_are_explained(run: Run, words: list[str], code: int, message: str) -> None:
    done = call(run.root, *words)
    assert (done.exit_code, message in done.output) == (code, True), done.output


def test_a_run_without_a_choice_asks_for_a_model(tiny_run: Run) -> None:
    done = call(tiny_run.root, "probe")
    assert done.exit_code == 4 and "--run-model: base, over, under" in done.output


def test_holdout_rows_that_were_trained_on_are_refused(run: Run, tmp_path: Path) -> None:
    rows = read_jsonl(run.data / "retain.jsonl")
    write_jsonl(tmp_path / "seen.jsonl", rows)
    done = call(run.root, "probe", "--holdout", tmp_path / "seen.jsonl")
    assert done.exit_code == 4 and "holdout rows must not be in" in done.output
