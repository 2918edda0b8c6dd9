"""The document depends on the results alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.study.__main__ import main
from benchmarks.study.cells import cells_of, read_results
from benchmarks.study.claims import verdicts
from benchmarks.study.definition import StudyDefinition, Table, load_study
from benchmarks.study.document import write_document
from benchmarks.study.gather import angles
from mergeforget.errors import InputError
from mergeforget.files import write_json
from mergeforget.run import Run

HERE = Path(__file__).parent
RUN = {
    "time": "2025-01-02T03:04:05Z", "seconds": 61.0, "load": 1.0, "processor": "A processor",
    "cores": "2", "threads": "1", "memory": "8 GB", "device": "cpu (float32)", "python": "3.11",
    "torch": "2.13.0", "commit": "abc1234",
}  # fmt: skip


def scored(auc: float, task: float) -> dict[str, list[float]]:
    return {"mia_auc/mia": [auc, 24], "mia_score/all": [1 - 2 * abs(auc - 0.5), 24],
            "task_aggregate/all": [task, 12], "nll/forget": [auc * 4, 12]}  # fmt: skip


def write(
    folder: Path, study: StudyDefinition, step: str, measured: dict[str, Any], state: str
) -> None:
    result = {
        "step": step,
        "state": state,
        "fingerprint": study.fingerprint(study.step(step)),
        "commands": study.commands(study.step(step)),
        "measured": measured,
        "run": RUN,
    }
    write_json(folder / f"{step}.json", result)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of tests/study/tiny.yaml, made up: the pair is done, the baseline is not."""
    folder = tmp_path / "docs" / "study"
    study, _ = load_study(str(HERE / "tiny.yaml"), {"model": "tiny"})
    write_json(folder / "study.json", {"given": {"model": "tiny"}, "study": study.model_dump()})
    scores = {
        "base": {"report": scored(0.9, 0.0), "all": scored(0.9, 0.0)},
        "over": {"report": scored(0.2, 0.8)},
        "under": {"report": scored(0.8, 0.4)},
        "ties-factors-d0.50": {"report": scored(0.55, 0.7)},
    }
    chosen = {"name": "ties-factors-d0.50", "density": 0.5, "sentence": "It is the balanced one."}
    write(folder, study, "main", {"scores": scores, "chosen": chosen}, "done")
    (folder / "main-angles-over.svg").write_text("<svg/>")
    return folder


def test_the_document_is_the_same_byte_for_byte(results: Path) -> None:
    path = results.parent / "study.md"
    done = CliRunner().invoke(main, ["write", str(results)])
    assert done.exit_code == 0, done.output
    first = path.read_bytes()
    path.unlink()
    assert CliRunner().invoke(main, ["write", str(results)]).exit_code == 0
    assert path.read_bytes() == first
    assert first.decode() == (HERE / "tiny.md").read_text(), "see tests/study/tiny.md"


def test_every_study_page_equals_the_one_generated_from_its_results(tmp_path: Path) -> None:
    docs = HERE.parent.parent / "docs"
    for study in sorted(p.parent for p in docs.glob("*/study.json")):
        copy = tmp_path / "docs" / study.name
        copy.parent.mkdir(exist_ok=True)
        copy.symlink_to(study)
        path = write_document(copy, copy.with_name(f"{study.name}.md"))
        assert path.read_text() == (docs / path.name).read_text(), path.name


def test_results_of_other_commands_are_not_shown(results: Path) -> None:
    values = json.loads((results / "main.json").read_text())
    write_json(results / "main.json", values | {"fingerprint": "of other commands"})
    text = write_document(results, results.parent / "study.md").read_text()
    assert "0.550" not in text and "## Not measured yet" in text


def test_a_diverged_training_is_reported_as_a_result(results: Path) -> None:
    study = read_results(results).study
    history = {"history": {"adapter": {"steps": 3}}}
    write(results, study, "npo", history, "failed")
    text = write_document(results, results.parent / "study.md").read_text()
    assert "| NPO | diverged | 3 |" in text


def test_several_steps_are_averaged() -> None:
    """0.2, 0.3, 0.7: mean 0.4, deviation sqrt((0.04 + 0.01 + 0.09) / 2) = 0.2646."""
    table = Table.model_validate({
        "title": "T",
        "columns": [{"label": "auc", "score": "mia_auc"}],
        "rows": [{"label": "a", "step": ["x", "y", "z"], "model": "over"}],
        "claims": [{"text": "c", "kind": "within", "row": "a", "column": "auc"}],
    })  # fmt: skip
    results = {
        name: {"state": "done", "measured": {"scores": {"over": {"all": scored(auc, 0.0)}}}}
        for name, auc in (("x", 0.2), ("y", 0.3), ("z", 0.7))
    }
    cell = cells_of(table, table.rows[0], results)["auc"]
    assert cell.text(3) == "0.400 ± 0.265 (3)" and cell.n == 24
    assert verdicts(table, results)[0].here.holds
    del results["y"]
    assert cells_of(table, table.rows[0], results)["auc"].text(3) == "0.450 ± 0.354 (2 of 3)"
    assert verdicts(table, results)[0].here.holds is None


def test_a_claim_about_all_runs_is_open_until_all_are_finished() -> None:
    table = Table.model_validate({
        "title": "T",
        "columns": [{"label": "auc", "score": "mia_auc"}],
        "rows": [{"label": name, "step": name, "model": "over"} for name in "abc"],
        "claims": [{"text": "all", "kind": "largest", "row": "a", "column": "auc"},
                   {"text": "c", "kind": "largest", "row": "a", "column": "auc", "of": ["c"]}],
    })  # fmt: skip
    results = {
        name: {"step": name, "state": "done",
               "measured": {"scores": {"over": {"all": scored(auc, 0.0)}}}}
        for name, auc in (("a", 0.7), ("b", 0.2))
    }  # fmt: skip
    assert [v.word for v in verdicts(table, results)] == ["Not measured yet"] * 2
    results["c"] = {"step": "c", "state": "failed", "measured": {}}
    of_all, of_c = verdicts(table, results)
    assert of_all.word == "Holds" and "0.200 (b)" in of_all.here.detail
    assert of_c.word == "Diverged" and of_c.here.detail == "c diverged"


def test_the_interval_of_a_mean_is_the_mean_of_the_intervals() -> None:
    table = Table.model_validate({
        "title": "T",
        "columns": [{"label": "auc", "score": "mia_auc"}, {"label": "mmlu", "score": "mmlu"},
                    {"label": "both", "mean": ["auc", "mmlu"]}],
        "rows": [{"label": "a", "step": "x", "model": "over"}],
    })  # fmt: skip
    figures = {"mia_auc/mia": [0.5, 8, 0.25, 0.75], "mmlu/mmlu": [0.25, 8, 0.125, 0.5]}
    measured = {"scores": {"over": {"all": figures}}}
    results = {"x": {"step": "x", "state": "done", "measured": measured}}
    cell = cells_of(table, table.rows[0], results)["both"]
    assert (cell.value, cell.interval) == (0.375, (0.1875, 0.625))


def test_angles_are_those_of_the_delta_at_each_snapshot(tmp_path: Path) -> None:
    rows = [
        {"model": "over", "group": "all", "vectors": "0 to s, s to end", "space": space,
         "step": step, "degrees": degrees}
        for step, every in ((8, (63.0, 85.0, 60.0)), (16, (71.0, 87.0, 66.0)))
        for space, degrees in zip(("delta", "A", "B"), every, strict=True)
    ]  # fmt: skip
    write_json(Run(tmp_path).analysis / "angles.json", {"rows": rows})
    found = angles(Run(tmp_path))["over"]
    assert (found["forward"], found["forward_min"], found["forward_max"]) == ([63, 71], 63, 71)


def test_the_best_of_a_method_is_chosen_on_the_selection_split() -> None:
    table = Table.model_validate({
        "title": "T",
        "part": "report",
        "columns": [{"label": "density", "candidate": "density"},
                    {"label": "auc", "score": "mia_auc"}],
        "rows": [{"label": "a", "step": "x", "model": "best ties"}],
    })  # fmt: skip
    scores = {
        name: {"choose": {"aggregate/all": [chosen, 4]}, "report": {"mia_auc/mia": [auc, 4]}}
        for name, chosen, auc in (
            ("ties-factors-d0.20", 0.3, 0.5),
            ("ties-factors-d0.80", 0.6, 0.9),
            ("dare_ties-factors-d0.40", 0.9, 0.1),
        )
    }
    results = {"x": {"state": "done", "measured": {"scores": scores}}}
    cells = cells_of(table, table.rows[0], results)
    assert (cells["density"].value, cells["auc"].value) == (0.8, 0.9)


def test_error_for_a_folder_without_a_study_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="study run NAME"):
        read_results(tmp_path)
