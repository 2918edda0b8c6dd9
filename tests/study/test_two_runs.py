"""Two runs of one study are compared: equal results, or the differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from benchmarks.study.__main__ import main
from benchmarks.study.definition import load_study
from mergeforget.files import write_json

HERE = Path(__file__).parent
MEASURED = {"scores": {"over": {"all": {"mia_auc/mia": [0.25, 24], "nll/forget": [1.5, 12]}}}}


def run_of(folder: Path, measured: dict[str, Any], model: str = "tiny") -> Path:
    study, _ = load_study(str(HERE / "tiny.yaml"), {"model": model})
    write_json(folder / "study.json", {"given": {}, "study": study.model_dump()})
    fingerprint = study.fingerprint(study.step("main"))
    result = {"step": "main", "state": "done", "fingerprint": fingerprint, "measured": measured}
    write_json(folder / "main.json", result | {"run": {"seconds": len(folder.name)}})
    return folder


def compare(first: Path, second: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["compare", str(first), str(second), *more])


def test_the_duration_of_a_run_is_not_compared(tmp_path: Path) -> None:
    done = compare(run_of(tmp_path / "a", MEASURED), run_of(tmp_path / "other", MEASURED))
    assert done.exit_code == 0
    assert "main: the same, 4 figures\n1 of 1 steps gave the same figures." in done.output


def test_the_largest_difference_is_reported_with_exit_code_7(tmp_path: Path) -> None:
    other = {"scores": {"over": {"all": {"mia_auc/mia": [0.5, 24], "nll/forget": [1.51, 12]}}}}
    done = compare(run_of(tmp_path / "a", MEASURED), run_of(tmp_path / "b", other))
    place = "scores.over.all.mia_auc/mia.0"
    assert f"main: 2 of 4 figures differ, by most at {place}: 0.25 and 0.5" in done.stdout
    assert done.exit_code == 7 and "number of threads" in done.stderr


def test_a_score_that_one_run_lacks_is_a_difference(tmp_path: Path) -> None:
    more = MEASURED | {"history": {"over": {"steps": 4}}}
    first, second = run_of(tmp_path / "a", MEASURED), run_of(tmp_path / "b", more)
    found = json.loads(compare(first, second, "--json").stdout)
    assert found["same"] is False
    assert found["steps"]["main"]["differ"] == {"history.over.steps": [None, 4]}


def test_runs_of_other_commands_are_not_compared(tmp_path: Path) -> None:
    second = run_of(tmp_path / "b", MEASURED, model="another")
    done = compare(run_of(tmp_path / "a", MEASURED), second)
    assert done.exit_code == 4 and "no step in common" in done.stderr
