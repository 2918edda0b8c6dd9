"""The command `mergeforget compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mergeforget.cli import main
from mergeforget.files import write_jsonl


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, words)])


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs that chose and one that did not."""
    for i, name in enumerate(("a", "b", "c")):
        folder = tmp_path / name
        score = {"model": "ties", "metric": "mia_auc", "split": "mia", "value": 0.25 + i / 4,
                 "better": "nearer", "n": 4, "target": 0.5}  # fmt: skip
        write_jsonl(folder / "scores.jsonl", [score, score | {"part": "report", "value": 0.9}])
        (folder / "recipe.yaml").write_text("name: x\n")
        (folder / "search").mkdir()
        if name != "c":
            (folder / "search" / "chosen.json").write_text('{"name": "ties"}')
    return [tmp_path / name for name in ("a", "b", "c")]


def test_chosen_candidates_are_shown_in_one_table(runs: list[Path]) -> None:
    done = call(*runs[:2])
    assert done.exit_code == 0, done.output
    for text in ("a: ties", "b: ties", "0.2500", "0.5000", "nearer to 0.5"):
        assert text in done.stdout
    scores = json.loads(call(*runs[:2], "--part", "report", "--json").stdout)["scores"]
    assert [every[0]["value"] for every in scores.values()] == [0.9, 0.9]


def test_missing_scores_are_reported(runs: list[Path], tmp_path: Path) -> None:
    assert "has no chosen candidate" in call(*runs).stderr
    done = call(*runs, "--run-model", "tie")
    assert done.exit_code == 4 and "Did you mean 'ties'" in done.stderr
    assert call(tmp_path / "none").exit_code == 4


def test_differences_on_the_same_rows_have_intervals(runs: list[Path], tmp_path: Path) -> None:
    """Run b reveals 8 of 12 forget answers that a does not; both keep the same retain answers."""
    for run, revealed in zip(runs, (0, 8), strict=False):
        rows = [
            {"id": f"{split}{i}", "input": f"{split} {i}?", "output": f"secret {i * 37}",
             "split": split, "completion": f"secret {i * 37}" if i < known else "nothing"}
            for split, known in (("forget", revealed), ("retain", 9))
            for i in range(12)
        ]  # fmt: skip
        write_jsonl(run / "answers" / "ties.jsonl", rows)
        gain = revealed / 8  # nats a token that b is ahead on each member
        losses = [{"id": f"{m}{i}", "member": m, "nll": 1 + i / 9 - gain * m * (1 + i % 3)}
                  for m in (True, False) for i in range(9)]  # fmt: skip
        write_jsonl(run / "answers" / "ties.losses.jsonl", losses)
    done = call(*runs[:2])
    assert "Difference from a: ties on the same rows" in done.stdout
    found = json.loads(call(*runs[:2], "--json").stdout)["differences"]["b: ties"]
    told = {(d["metric"], d["split"]): d for d in found}
    leaks, kept = told["leak_rate", "forget"], told["leak_rate", "retain"]
    assert leaks["value"] == pytest.approx(8 / 12) and leaks["interval"][0] > 0.2
    assert kept["value"] == 0 and not kept["distinguishable"] and kept["interval"][1] > 0
    assert told["mia_auc", "mia"]["value"] > 0.3 and told["mia_auc", "mia"]["n"] == 18
    call(*runs[:2], "--page", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Differences from a: ties" in page and "Leaked answers, forget" in page
