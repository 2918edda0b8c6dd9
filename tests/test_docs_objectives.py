"""docs/objectives.md agrees with the code about every objective."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mergeforget.data.transforms import TRANSFORMS
from mergeforget.losses import UNLEARNING_LOSSES

TEXT = (Path(__file__).parent.parent / "docs" / "objectives.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))


def test_every_objective_has_a_section_and_a_row_of_comparison() -> None:
    names = set(UNLEARNING_LOSSES.names())
    assert set(SECTIONS) == names
    table = TEXT.split("| loss | ours")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([\w, ]+) \|", table, re.MULTILINE)
    assert {name for row in rows for name in row.split(", ")} == names


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_section_has_source_arguments_and_failure(name: str) -> None:
    section = " ".join(SECTIONS[name].split())
    stated = re.search(r"Arguments: (.*?)\. -", section)
    assert stated is not None
    parameters = UNLEARNING_LOSSES.get(name).parameters
    words = [f"`{key}` {p.default}" for key, p in parameters.items()]
    assert stated.group(1) == (", ".join(words) or "none")
    for part in ("- Source: ", "- Typical: ", " Use it ", "- Fails: "):
        assert part in section
    papers = set(re.findall(r"arXiv:[\d.]+\d", UNLEARNING_LOSSES.get(name).source))
    assert not papers or papers & set(re.findall(r"arXiv:[\d.]+\d", TEXT))


def test_every_transform_has_a_line() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == set(TRANSFORMS)
