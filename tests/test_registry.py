"""Every family: the folder is the list, the file name is the name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import mergeforget
from mergeforget.api.attacking import check_arguments
from mergeforget.attack.methods import ATTACKS
from mergeforget.errors import UnknownNameError, UsageError
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


def test_an_unknown_name_in_the_title_of_a_publication_suggests_its_member() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'semeval2025_task4' .*LUME"):
        FAMILIES[3].get("lume")
    with pytest.raises(UnknownNameError, match="Did you mean 'negmerge'"):
        MERGE_METHODS.get("arxiv:2410.05583")
    with pytest.raises(UnknownNameError, match="add --plugin FILE"):  # several mention it
        MERGE_METHODS.get("arxiv")


def test_no_member_is_a_hidden_file() -> None:
    assert Path(mergeforget.__file__).parent.is_dir()
    assert not any(name.startswith("_") for family in FAMILIES for name in family.names())


@pytest.mark.parametrize(
    ("method", "argument", "value", "words"),
    [
        ("linear", "normalize", "no", "must be true or false, not 'no'"),
        ("linear", "normalize", 1, "must be true or false"),
        ("slerp", "t", [0, 1], "must be a number"),
        ("breadcrumbs", "gamma", "half", "must be a number, not 'half'"),
        ("breadcrumbs", "gamma", True, "must be a number"),
        ("karcher", "max_iter", 2.5, "must be an integer"),
        ("emr", "task", "x", "must be an integer or none"),
        ("ties", "sign", "most", "must be 'total' or 'count', not 'most'"),
    ],
)
def test_arguments_of_another_type_are_refused(
    method: str, argument: str, value: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        MERGE_METHODS.get(method).check_arguments({argument: value})


@pytest.mark.parametrize(("family", "name"), MEMBERS, ids=lambda v: v if isinstance(v, str) else "")
def test_defaults_have_the_type_of_their_argument(family: Registry[Any], name: str) -> None:
    entry = family.get(name)
    defaults = {n: p.default for n, p in entry.parameters.items() if p.default is not p.empty}
    entry.check_arguments(defaults)


def test_attacks_refuse_arguments_of_another_type() -> None:
    with pytest.raises(UsageError, match="full of 'relearn' must be true or false, not 'no'"):
        check_arguments({"full": "no"}, ["relearn"])
