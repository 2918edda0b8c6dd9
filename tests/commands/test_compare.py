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


def test_chosen_candidates_stand_side_by_side(runs: list[Path]) -> None:
    done = call(*runs[:2])
    assert done.exit_code == 0, done.output
    for text in ("a: ties", "b: ties", "0.2500", "0.5000", "nearer to 0.5"):
        assert text in done.stdout
    scores = json.loads(call(*runs[:2], "--part", "report", "--json").stdout)["scores"]
    assert [every[0]["value"] for every in scores.values()] == [0.9, 0.9]


def test_what_is_missing_is_said(runs: list[Path], tmp_path: Path) -> None:
    assert "has no chosen candidate" in call(*runs).stderr
    done = call(*runs, "--run-model", "tie")
    assert done.exit_code == 4 and "Did you mean 'ties'" in done.stderr
    assert call(tmp_path / "none").exit_code == 4
