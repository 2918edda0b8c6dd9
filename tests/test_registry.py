"""Every family: the folder is the list, the file name is the name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import mergeforget
from mergeforget.attack.methods import ATTACKS
from mergeforget.errors import UnknownNameError
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.registry import Registry

FAMILIES: list[Registry[Any]] = [MERGE_METHODS, UNLEARNING_LOSSES]
for name in ("metrics", "benchmarks"):
    module = importlib.import_module(f"mergeforget.{name}")
    FAMILIES.append(getattr(module, name.upper()))
FAMILIES.append(ATTACKS)
MEMBERS = [(family, name) for family in FAMILIES for name in family.names()]


@pytest.mark.parametrize(("family", "name"), MEMBERS, ids=lambda v: v if isinstance(v, str) else "")
def test_file_name_is_the_name(family: Registry[Any], name: str) -> None:
    entry = family.get(name)
    assert entry.name == name and entry.source and entry.summary


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.names()], ids=lambda f: f.kind)
def test_unknown_name_suggests_the_nearest(family: Registry[Any]) -> None:
    near = family.names()[0]
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        family.get(near + "x")
    with pytest.raises(UnknownNameError, match="add --plugin FILE"):
        family.get("zzzzzzzzzz")


def test_no_member_is_a_hidden_file() -> None:
    assert Path(mergeforget.__file__).parent.is_dir()
    assert not any(name.startswith("_") for family in FAMILIES for name in family.names())
