"""Steps are run once, in order, and go on where they were stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from conftest import short_rows

from benchmarks.study import schedule, steps
from benchmarks.study.__main__ import main
from benchmarks.study.definition import StudyDefinition, load_study
from benchmarks.study.places import Clock, Places
from benchmarks.study.schedule import run_study
from benchmarks.study.tool import circumstances
from mergeforget.errors import InputError, Interrupted, MergeforgetError
from mergeforget.files import read_json, write_json, write_jsonl

HERE = Path(__file__).parent
STUDY = """
name: s
title: S
parts:
  - name: one
    title: One
    steps:
      - {name: a, minutes: 2, commands: ["train --recipe npo --out {here}", "evaluate {here}"]}
      - {name: b, minutes: 1, at: a, commands: ["search {here}"]}
  - name: two
    title: Two
    needs: [there.jsonl]
    steps:
      - {name: c, minutes: 3, commands: ["attack {a} --from {b.base}"]}
"""
RECIPE = "name: npo\nmodel: {name: M}\ntrain: {objective: [{loss: npo, on: forget}]}\n"
REAL = """
name: real
title: R
parts:
  - name: one
    title: One
    steps:
      - {name: made, commands: ["data make --out {here}/rows --people 1"]}
      - {name: bad, commands: ["report {made}"]}
"""
TWO = """
name: two
title: T
parts:
  - name: one
    title: One
    steps:
      - {name: a, commands: ["train --out {here}"]}
      - {name: b, commands: ["train --out {here}"]}
      - {name: c, at: a, commands: ["search {here}"]}
      - {name: d, at: a, commands: ["search {here}"]}
"""
Call = tuple[int | None, Any]


class Tool:
    """A replacement of the tool that records its calls and ends with given exit codes."""

    def __init__(self, ends: dict[str, list[Call]] | None = None) -> None:
        self.ends = ends or {}
        self.called: list[str] = []
        self.threads: set[int | None] = set()

    def __call__(
        self, words: Sequence[str], seconds: float | None, threads: int | None = None
    ) -> Call:
        self.called.append(" ".join(words))
        self.threads.add(threads)
        if words[0] == "train":
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(RECIPE)
        waiting = self.ends.get(words[0])
        return waiting.pop(0) if waiting else (0, {"words": len(words)})


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "s.yaml").write_text(STUDY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "there.jsonl").touch()
    out = tmp_path / "out"
    return Places(out, out / "results", tmp_path / "data", tmp_path / "s.yaml")


def study_of(places: Places) -> StudyDefinition:
    return load_study(str(places.file))[0]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    tool = Tool()
    monkeypatch.setattr(steps, "call", tool)
    monkeypatch.setattr(schedule, "circumstances", lambda threads: {"torch": "2.13.0"})
    return tool


def test_every_step_is_run_once_with_its_folders(places: Places, tool: Tool) -> None:
    states = run_study(study_of(places), places)
    a = places.out / "runs" / "a"
    assert states == {"a": "done", "b": "done", "c": "done"}
    assert tool.called == [
        f"train --recipe npo --out {a}", f"evaluate {a}", f"search {a}", f"attack {a} --from M",
    ]  # fmt: skip
    assert read_json(places.results / "c.json")["measured"] == {"printed": [{"words": 4}]}
    assert run_study(study_of(places), places) == states
    assert len(tool.called) == 4


def test_a_killed_step_resumes_at_the_interrupted_command(places: Places, tool: Tool) -> None:
    tool.ends = {"evaluate": [(-9, None)]}
    with pytest.raises(MergeforgetError, match="step a failed"):
        run_study(study_of(places), places)
    run_study(study_of(places), places, only=["one"])
    assert [text.split()[0] for text in tool.called] == ["train", "evaluate", "evaluate", "search"]


def test_a_stopped_training_is_resumed(places: Places, tool: Tool) -> None:
    tool.ends = {"train": [(143, None)]}
    with pytest.raises(Interrupted, match="Rerun the command to resume"):
        run_study(study_of(places), places)
    run_study(study_of(places), places)
    first, second = (text for text in tool.called if text.startswith("train"))
    assert second == f"{first} --resume"


def test_a_step_whose_recipe_changed_is_run_again(places: Places, tool: Tool) -> None:
    run_study(study_of(places), places, only=["one"])
    result, mark = read_json(places.results / "a.json"), read_json(places.mark("a"))
    assert result["recipes"] == mark["recipes"] == steps.recipes_of(["train --recipe npo"])
    assert mark["recipes"]["npo"] != steps.recipes_of(["train --recipe ga"])["ga"]
    write_json(places.mark("a"), mark | {"recipes": {"npo": "of an earlier recipe"}})
    assert steps.state_of(study_of(places), places, None, study_of(places).step("a")) == "waiting"


def test_a_changed_command_reruns_its_step_and_the_dependent_ones(
    places: Places, tool: Tool
) -> None:
    run_study(study_of(places), places)
    (places.out / "runs" / "a" / "old").touch()
    places.file.write_text(STUDY.replace("--recipe npo", "--recipe ga"))
    run_study(study_of(places), places)
    assert len(tool.called) == 8 and not (places.out / "runs" / "a" / "old").exists()
    assert "--resume" not in tool.called[4]


def test_dependents_of_a_diverged_step_are_skipped(places: Places, tool: Tool) -> None:
    tool.ends = {"train": [(5, None)]}
    states = run_study(study_of(places), places)
    assert states["a"] == "failed" and states["b"] == "skipped: it reads a"
    assert read_json(places.results / "a.json")["state"] == "failed"
    run_study(study_of(places), places, again=["a"])
    assert tool.called[1].startswith("train") and "--resume" not in tool.called[1]


def test_a_study_stopped_by_its_time_limit_resumes(places: Places, tool: Tool) -> None:
    tool.ends = {"evaluate": [(None, None)]}
    assert run_study(study_of(places), places, minutes=60)["a"] == "waiting"
    assert run_study(study_of(places), places) == {"a": "done", "b": "done", "c": "done"}


def test_a_part_includes_the_steps_it_depends_on(places: Places, tool: Tool) -> None:
    assert list(run_study(study_of(places), places, only=["two"])) == ["a", "b", "c"]
    with pytest.raises(MergeforgetError, match="Did you mean 'two'"):
        run_study(study_of(places), places, only=["tow"])


def test_a_part_includes_the_steps_shown_in_its_tables(places: Places, tool: Tool) -> None:
    study = study_of(places)
    rows = [{"label": "b", "step": "b"}]
    table = {"title": "T", "columns": [{"label": "n", "reads": "n"}], "rows": rows}
    shown = {"name": "shown", "title": "Shown", "tables": [table]}
    values = study.model_dump()
    study = StudyDefinition.model_validate(values | {"parts": [*values["parts"], shown]})
    assert list(run_study(study, places, only=["shown"])) == ["a", "b"]


def test_a_part_without_its_data_is_skipped_with_a_message(places: Places, tool: Tool) -> None:
    (places.data / "there.jsonl").unlink()
    assert run_study(study_of(places), places)["c"].startswith("skipped: there is no")
    assert len(tool.called) == 3


def test_folders_of_other_programs_are_not_modified(places: Places, tool: Tool) -> None:
    (places.out / "runs" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="was not written by this study"):
        run_study(study_of(places), places)


def test_time_left_is_estimated_from_the_measured_speed(places: Places) -> None:
    """Two minutes were expected and one was needed: the other four need two."""
    every = [step for _, step in study_of(places).steps()]
    clock = Clock()
    assert clock.estimate(every) == 360
    clock.ended(every[0], 60.0)
    assert clock.estimate(every[1:]) == 120
    assert clock.estimate(every[1:], jobs=2) == 60


def test_commands_run_in_separate_processes(tmp_path: Path) -> None:
    """A real one: made-up people, and a failure that names its command."""
    path = tmp_path / "real.yaml"
    path.write_text(REAL)
    done = CliRunner().invoke(main, ["run", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 4 and "step bad failed" in done.output
    result = read_json(tmp_path / "out" / "results" / "made.json")
    assert result["measured"]["printed"][0]["forget"]["documents"] == 3  # one of each task
    assert str(tmp_path) not in json.dumps(result)


def test_a_command_computes_with_the_threads_of_its_study(places: Places, tool: Tool) -> None:
    """So that the figures do not depend on the machine's cores, or on what else runs."""
    run_study(study_of(places).model_copy(update={"threads": 3}), places)
    assert tool.threads == {3}
    assert load_study("cpu")[0].threads == 1
    assert circumstances(1)["threads"] == "1"


@pytest.mark.slow
def test_a_repeated_study_of_a_tiny_model_gives_equal_results(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """The file format of the studies that come along, every step real."""
    for split in ("forget", "retain", "holdout"):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", short_rows(split, 6))
    found = []
    for folder in ("one", "two"):
        out = tmp_path / folder
        words = ["run", str(HERE / "tiny.yaml"), "--data", str(tmp_path / "data")]
        done = CliRunner().invoke(
            main, [*words, "--value", f"model={tiny_folder}", "--out", str(out), "--json"]
        )
        assert done.exit_code == 0, done.output
        states = json.loads(done.stdout)["steps"]
        assert states["main"] == states["npo"] == "done" and "no" in states["never"]
        files = [read_json(out / "results" / f"{name}.json") for name in ("main", "npo")]
        found.append([file["measured"] for file in files])
        assert (out / "results" / "main-angles-over.svg").exists()
        shutil.rmtree(out)
    assert found[0] == found[1]


def test_two_steps_run_at_once_but_never_in_one_folder(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two trainings wait for each other; two searches in one folder would run at once."""
    places.file.write_text(TWO)
    together, at_work = threading.Barrier(2), set[str]()

    def tool(words: Sequence[str], seconds: float | None, threads: int | None = None) -> Call:
        if words[0] == "train":
            together.wait(timeout=60)
        if words[0] == "search":
            assert words[1] not in at_work
            at_work.add(words[1])
            time.sleep(0.05)
            at_work.remove(words[1])
        return 0, {}

    monkeypatch.setattr(steps, "call", tool)
    monkeypatch.setattr(schedule, "circumstances", lambda threads: {})
    states = run_study(study_of(places), places, jobs=4)
    assert set(states.values()) == {"done"}


def test_a_terminated_study_terminates_its_command(tmp_path: Path) -> None:
    """The command in flight is gone when the study is, and its step is not done."""
    path = tmp_path / "long.yaml"
    path.write_text(REAL.replace("--people 1", "--people 200000"))
    words = [sys.executable, "-m", "benchmarks.study", "run", str(path)]
    out = tmp_path / "out"
    with subprocess.Popen([*words, "--out", str(out)], stderr=subprocess.PIPE) as study:
        while not (out / "steps" / "made.json").exists():
            assert study.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        (child,) = psutil.Process(study.pid).children()
        study.terminate()
        assert study.wait(timeout=120) == 143
        assert not child.is_running()
    assert read_json(out / "steps" / "made.json")["state"] == "running"
