"""Recipes: read, checked whole, written back; faults named with line and nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.errors import RecipeError
from mergeforget.recipe import EvaluationSpec, load_recipe, recipe_names, save_recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_source_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.source
    save_recipe(recipe, tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml") == recipe


def test_yaml_reads_on_as_text_and_2e_4_as_a_number(tmp_path: Path) -> None:
    recipe = load_recipe("zjuklab", ["pair.over.learning_rate=2e-4"])
    assert recipe.training("over").learning_rate == 2e-4
    assert [t.on for t in recipe.training("over").objective] == ["forget", "retain", "retain"]


def test_unknown_key_is_named_with_line_and_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    save_recipe(load_recipe("zjuklab"), path)
    text = path.read_text().replace("    epochs: 5", "    epoch: 5", 1)
    path.write_text(text)
    line = text.splitlines().index("    epoch: 5") + 1
    with pytest.raises(RecipeError) as fault:
        load_recipe(path)
    assert f"line {line}, pair.over.epoch" in str(fault.value)
    assert "Did you mean 'epochs'" in str(fault.value)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("merge.density=1.5", "changed by --set, is not .*\n  --set merge.density: .* equal to 1"),
        ("merge.density=0", "greater than 0"),
        ("search.densities=0.1:0.5", "not enough values"),
        ("pair.over.epochs=1.5", "valid integer"),
        ("pair.over", "--set expects KEY=VALUE"),
        ("name.x=1", "is a value, not a section"),
    ],
)
def test_wrong_values_are_refused(assignment: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("zjuklab", [assignment])


@given(st.integers(1, 20), st.integers(1, 20))
def test_density_range_includes_both_ends(low: int, steps: int) -> None:
    step, last = 0.02, low * 0.02 + steps * 0.02
    text = f"search.densities={low * step:.2f}:{last:.2f}:{step}"
    found = load_recipe("zjuklab", [text]).search.densities
    assert len(found) == steps + 1 and found[-1] == pytest.approx(last)


def test_a_side_that_another_recipe_names_can_be_set_too() -> None:
    recipe = load_recipe("eul-npo", ["pair.over.batch_size=4", "pair.over.objective.0.alpha=2.0"])
    assert recipe.pair is not None
    assert recipe.pair.over.batch_size == 4
    assert recipe.pair.over.objective[0].arguments["alpha"] == 2.0
    assert recipe.pair.under == load_recipe("zjuklab").training("under")


def test_tofu_judges_membership_by_answers_by_default() -> None:
    assert EvaluationSpec(benchmark="tofu").membership == "answers"
    assert EvaluationSpec(benchmark="tofu", membership="rows").membership == "rows"
    assert EvaluationSpec(benchmark="custom").membership == "documents"
