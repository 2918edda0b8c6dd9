"""Analyses write their numbers next to every figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from finished_run import write_pair
from PIL import Image

from mergeforget.analysis.evidence import MissingError
from mergeforget.analysis.findings import ANALYSES, analyse, analyse_all
from mergeforget.cli import main
from mergeforget.commands.analyze import split
from mergeforget.errors import UnknownNameError, UsageError
from mergeforget.recipe import load_recipe, save_recipe
from mergeforget.run import Run


@pytest.fixture
def everything(reported: Run) -> Path:
    return reported.analysis


@pytest.mark.parametrize("name", ANALYSES)
def test_numbers_are_saved_next_to_the_figures(everything: Path, name: str) -> None:
    found = json.loads((everything / f"{name}.json").read_text())
    rows = list(csv.DictReader((everything / f"{name}.csv").open()))
    assert len(rows) == len(found["rows"]) > 0 and found["figures"]
    for figure in found["figures"]:
        assert figure["alt"] and figure["title"]
        assert (everything / f"{figure['name']}.svg").read_text().startswith("<?xml")
        assert Image.open(everything / f"{figure['name']}.png").width == 1120


def test_tooltips_are_inside_their_figure(everything: Path) -> None:
    marks = [
        mark
        for name in ("angles", "density")
        for figure in json.loads((everything / f"{name}.json").read_text())["figures"]
        for mark in figure["marks"]
    ]
    assert len(marks) > 100
    assert all(0 < m["x"] < 1 and 0 < m["y"] < 1 and m["text"] for m in marks)


def test_the_same_numbers_give_the_same_files(finished: Run, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        analyse(finished, "mia", tmp_path / folder)
    for name in ("mia.json", "mia.csv", "mia-histograms.svg", "mia-histograms.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_missing_analysis_names_its_command(tmp_path: Path) -> None:
    run = Run(tmp_path)
    save_recipe(load_recipe("zjuklab"), run.recipe)
    write_pair(run)
    found = {f.name: f.missing for f in analyse_all(run, run.analysis)}
    assert not found["angles"]
    assert "mergeforget search" in found["density"] and "mergeforget evaluate" in found["mia"]


def test_unknown_analysis_suggests_the_nearest(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'angles'"):
        analyse(finished, "angle", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), (None, [])),
        (("angles",), (None, ["angles"])),
        (("angles", "mia"), (None, ["angles", "mia"])),
        (("runs/one",), (Path("runs/one"), [])),
        (("runs/one", "angles"), (Path("runs/one"), ["angles"])),
        (("one", "all"), (Path("one"), ["all"])),
    ],
)
def test_the_run_may_be_omitted(
    arguments: tuple[str, ...], expected: tuple[Path | None, list[str]]
) -> None:
    assert split(arguments, [*ANALYSES, "all"]) == expected


def test_a_misspelled_analysis_is_not_parsed_as_a_run() -> None:
    done = CliRunner().invoke(main, ["analyze", "angels"])
    assert done.exit_code == 2 and "Did you mean 'angles'" in done.output


def test_analyze_prints_its_findings(finished: Run, tmp_path: Path) -> None:
    call = ["analyze", str(finished.root), "mia", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["analyses"][0]["figures"][0]["name"] == "mia-histograms"


def test_a_method_that_cannot_be_predicted_is_missing(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Run) -> None:
        raise UsageError(
            "density 0.05 is too small. Lower epsilon, for example --set epsilon=0.05."
        )

    monkeypatch.setattr("mergeforget.analysis.density.run_prediction", refused)
    with pytest.raises(MissingError, match=r"cannot be predicted: density 0.05 is too small\.$"):
        analyse(finished, "prediction", tmp_path)
