"""list and recipes: what there is, and what a recipe does."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mergeforget.api.catalog import FAMILIES, SUPPLIED, entries, shown_name
from mergeforget.cli import main
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.recipe import load_recipe, recipe_names


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "recipes"])
def test_list_has_arguments_defaults_and_source_of_every_member(family: str) -> None:
    found = json.loads(run("list", family, "--json").stdout)
    assert list(found) == [shown_name(family, e.name) for e in entries(family)]
    for entry in entries(family):
        one = found[shown_name(family, entry.name)]
        assert one["source"] and one["does"]
        for name, parameter in inspect.signature(entry.fn).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in SUPPLIED:
                default = parameter.default
                wanted = "required" if default is parameter.empty else default
                assert one["arguments"][name] == json.loads(json.dumps(wanted, default=str))


def test_list_formats_a_loss_for_reading() -> None:
    text = run("list", "losses").stdout
    assert re.search(r"^npo\(beta=0.1, .*\)\n    Push forget answers", text, re.MULTILINE)
    assert text.count("\n    ") >= 2 * len(UNLEARNING_LOSSES.names())


def test_list_benchmarks_prints_the_names_that_the_option_takes() -> None:
    text = run("list", "benchmarks").stdout
    names = [line for line in text.splitlines() if not line.startswith(" ")]
    assert names == ["custom", "knowundo", "muse", "rwku", "semeval2025-task4", "tofu"]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "recipes"])
def test_list_prints_no_empty_parentheses_and_no_tuples(family: str) -> None:
    headings = [x for x in run("list", family).stdout.splitlines() if not x.startswith(" ")]
    assert not [line for line in headings if "()" in line or "=(" in line or "=[" in line]


def test_error_for_an_unknown_family_lists_the_known_ones() -> None:
    done = run("list", "losess")
    assert done.exit_code == 2 and "losses" in done.output


def test_recipes_list_contains_every_recipe() -> None:
    for arguments in (("recipes", "list"), ("list", "recipes")):
        lines = run(*arguments).stdout.splitlines()
        assert [line.split()[0] for line in lines] == recipe_names()
        assert set(json.loads(run(*arguments, "--json").stdout)) == set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_show_explains_every_recipe(name: str) -> None:
    done = run("recipes", "show", name)
    assert done.exit_code == 0, done.output
    recipe = load_recipe(name)
    assert recipe.source.split()[0] in done.stdout
    for training in recipe.trainings().values():
        assert f"{training.learning_rate:g}" in done.stdout
        for term in training.objective:
            entry = UNLEARNING_LOSSES.get(term.loss)
            assert f"{term.weight:g} x {entry.name} on the {term.on} set" in done.stdout
            assert entry.summary.replace("``", "") in done.stdout
    for value in recipe.published.values():
        for figure in value.values() if isinstance(value, dict) else []:
            assert f"{figure:g}" in done.stdout if isinstance(figure, float) else True


def test_recipes_copy_writes_an_equal_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("recipes", "copy", "zjuklab").exit_code == 0
    assert load_recipe("zjuklab.yaml") == load_recipe("zjuklab")
    again = run("recipes", "copy", "zjuklab")
    assert again.exit_code == 4 and "--force" in again.output
    assert run("recipes", "copy", "zjuklab", "zjuklab.yaml", "--force").exit_code == 0


def test_error_for_an_unknown_recipe_suggests_the_nearest() -> None:
    done = run("recipes", "show", "zjuklb")
    assert done.exit_code == 3 and "Did you mean 'zjuklab'" in done.output
