"""From figures to a finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergeforget.attack.result import Result, read_results, write_result
from mergeforget.attack.verdict import Estimate, difference, judge, less, worst_of


@pytest.mark.parametrize(
    ("found", "known", "expected"),
    [
        (Estimate(0.5, 0.2, 0.8), 2.0, "traces"),  # above 0 and above a tenth of 2
        (Estimate(0.1, 0.05, 0.15), 2.0, "none found"),  # above 0, but less than a tenth
        (Estimate(0.1, -0.2, 0.4), 2.0, "undecided"),
        (Estimate(-0.5, -0.8, -0.2), 2.0, "none found"),
        (Estimate(0.2, 0.15, 0.3), None, "traces"),  # a tenth of a nat where nothing is known
        (Estimate(0.0, -0.05, 0.05), None, "none found"),
        (Estimate(0.2, 0.15, 0.3), -1.0, "traces"),  # it knew nothing before: the same
    ],
)
def test_findings_by_the_stated_thresholds(
    found: Estimate, known: float | None, expected: str
) -> None:
    assert judge(found, known) == expected


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        (["traces", "undecided"], "traces"),
        (["none found", "traces"], "traces"),
        (["undecided", "none found"], "undecided"),
        (["none found", "none found"], "none found"),
    ],
)
def test_one_try_that_finds_traces_is_enough(findings: list[Any], expected: str) -> None:
    assert worst_of(findings) == expected


def test_a_difference_is_of_means_over_documents() -> None:
    found = difference({"a": 1.0, "b": 3.0}, {"c": 0.5, "d": 0.5})
    assert found.value == 1.5  # (1 + 3) / 2 - 0.5
    assert (found.low, found.high) == (0.5, 2.5)  # one document drawn twice
    assert difference({"a": 2.0}).value == 2.0 and less({"a": 2.0}, {"a": 0.5}) == {"a": 1.5}


def test_results_of_several_models_share_a_file(tmp_path: Path) -> None:
    for model, value in (("over", 1), ("under", 2), ("over", 3)):
        rows = [{"model": model, "step": value}]
        write_result(tmp_path, Result("relearn", model, "traces", "v", rows))
    found = read_results(tmp_path, "relearn")
    assert [(r.model, r.rows[0]["step"]) for r in found] == [("under", 2), ("over", 3)]
    text = (tmp_path / "relearn.csv").read_text()
    assert text == "attacked,model,step\nunder,under,2\nover,over,3\n"
