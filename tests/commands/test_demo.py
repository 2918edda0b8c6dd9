"""The demo runs the whole chain, and a second call shows the results of the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mergeforget.cli import main
from mergeforget.files import read_json, read_jsonl
from mergeforget.run import Run

SMALL = ["pair.over.lora.r=2", "pair.under.lora.r=2", "evaluation.max_new_tokens=2",
         "search.weights=[[0.3, 0.7], [0.5, 0.5]]"]  # fmt: skip


def test_demo_runs_the_whole_chain_on_a_tiny_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    call = ["demo", "--model", str(tiny_folder), "--out", str(tmp_path / "run"), "--json",
            "--quick", "--people", "4"]  # fmt: skip
    call += [word for assignment in SMALL for word in ("--set", assignment)]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    run = Run(tmp_path / "run")
    assert [row["model"] for row in result["table"]] == [
        "base", "over", "under", result["chosen"],
    ]  # fmt: skip
    assert all(0 <= row["mia_auc"] <= 1 for row in result["table"])
    assert read_json(run.search / "chosen.json")["name"] == result["chosen"]
    shown = result["answers"]
    assert [x["split"] for x in shown] == 4 * ["forget"] + 2 * ["retain"]
    assert all(x["prompt"] and x["expected"] for x in shown)
    assert "<html" in run.report.read_text() and list(run.analysis.glob("*.svg"))
    measured = read_jsonl(run.scores)
    again = CliRunner().invoke(main, call)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["table"] == result["table"]
    assert read_jsonl(run.scores) == measured
