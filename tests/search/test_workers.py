"""Several workers on one study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mergeforget.cli import main
from mergeforget.errors import InputError
from mergeforget.files import read_json, read_jsonl
from mergeforget.recipe import SearchSpec
from mergeforget.run import Run
from mergeforget.search.optuna_study import OptunaStudy

WORKER = """
import json, sys, time
from pathlib import Path
from mergeforget.recipe import SearchSpec
from mergeforget.score import Score
from mergeforget.search.objective import Rank
from mergeforget.search.optuna_study import OptunaStudy

Path(f"ready-{sys.argv[2]}").touch()
while len(list(Path().glob("ready-*"))) < 2:  # importing takes longer than measuring
    time.sleep(0.01)
study = OptunaStudy(SearchSpec(strategy="tpe"), sys.argv[1], "shared")
done = []
for _ in range(8):
    trial, candidate = study.suggest()
    if study.is_taken(trial):
        study.skip(trial)
        continue
    time.sleep(0.1)
    done.append(candidate.name)
    value = 1 - abs(candidate.density - 0.4)
    study.tell(trial, Rank(0.0, value, 0.0, 0.0), [Score("nll", "all", 1.0, "lower", 1)])
print(json.dumps(done))
"""
SHARED = ("--strategy", "tpe", "--densities", "0.2,0.5,0.8", "--first", "0.5")


def storages() -> list[str]:
    """A file of each kind, and the empty databases that MERGEFORGET_DATABASES names, if any."""
    further = os.environ.get("MERGEFORGET_DATABASES", "").split()
    return ["sqlite:///study.db", "study.journal", *further]


@pytest.mark.parametrize("storage", storages())
def test_two_processes_measure_no_candidate_twice(tmp_path: Path, storage: str) -> None:
    command = [sys.executable, "-c", WORKER, storage]
    workers = [
        subprocess.Popen(
            [*command, name], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment()
        )
        for name in ("one", "other")
    ]
    one, other = (json.loads(worker.communicate(timeout=300)[0]) for worker in workers)
    assert [worker.returncode for worker in workers] == [0, 0]
    assert one and other and len({*one, *other}) == len(one) + len(other)


def environment() -> dict[str, str]:
    """This checkout first on the path, wherever the process runs."""
    root = str(Path(__file__).parent.parent.parent)
    return os.environ | {"PYTHONPATH": root}


def test_results_of_workers_are_collected_by_the_search(tiny_run: Run, tmp_path: Path) -> None:
    runs = [Run(Path(shutil.copytree(tiny_run.root, tmp_path / name))) for name in ("a", "b")]
    shared = (*SHARED, "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--device", "cpu")
    worked = call(runs[0], *shared, "--worker", "--budget", "2", "--json")
    assert json.loads(worked) == {"explored": 2}
    assert not (runs[0].search / "chosen.json").exists()
    call(runs[1], *shared)
    assert read_json(runs[1].search / "chosen.json")["explored"] == 3
    of_worker, of_chooser = (
        {r["model"] for r in read_jsonl(run.scores)} - {"base", "over", "under"} for run in runs
    )
    assert len(of_worker) == 2 and of_worker < of_chooser


def test_a_database_without_its_driver_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="database driver is not installed.*pip install pymysql"):
        OptunaStudy(SearchSpec(strategy="tpe"), "mysql+pyodbc://nobody@127.0.0.1/none", "shared")


def test_a_worker_requires_a_shared_study(tiny_run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(tiny_run.root, tmp_path / "run")))
    done = CliRunner().invoke(main, ["search", str(run.root), "--worker"])
    assert done.exit_code == 2 and "the same --storage URL" in done.stderr


def call(run: Run, *arguments: str) -> str:
    done = CliRunner().invoke(main, ["search", str(run.root), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout
