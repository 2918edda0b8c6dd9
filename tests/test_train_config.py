"""The training section of a recipe: what fits together, and pairs made of other recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mergeforget.errors import RecipeError
from mergeforget.recipe import Recipe, load_recipe, save_recipe
from mergeforget.train.objective import check_recipe, mask_of
from mergeforget.train_config import Full, Term, Training

GA, GD = Term(loss="ga", on="forget"), Term(loss="gd", on="retain")
HOLD = Term(loss="hold", on="held")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"objective": [GA, GA]}, "names a term twice"),
        ({"direction": "ngdiff", "objective": [GA]}, "needs terms on forget and on retain"),
        ({"direction": "gru", "objective": [GA, HOLD]}, "needs terms on forget and on retain"),
        ({"direction": "ngdiff", "objective": [GA, GD, HOLD]}, "leave out the terms on held"),
        ({"direction": "sam", "objective": [GA, HOLD]}, "leave out the terms on held"),
        ({"direction": "ngdiff", "dual": {"limit": 1.0}}, "dual has no proper effect"),
        ({"direction": "gru", "dual": {"limit": 1.0}}, "dual has no proper effect"),
        ({"direction": "ngdiff", "batches": "alternating"}, "set batches: together"),
        ({"direction": "gru", "batches": "alternating"}, "set batches: together"),
        ({"direction": "sam", "batches": "alternating"}, "set batches: together"),
        ({"direction": "sam", "batches": "by_set"}, "set batches: together"),
        ({"auto_rate": {}}, "optimizer: sgd"),
        ({"auto_rate": {}, "direction": "ngdiff", "optimizer": "sgd"}, "schedule: constant"),
        (
            {
                "auto_rate": {},
                "direction": "ngdiff",
                "optimizer": "sgd",
                "schedule": "constant",
                "warmup_epochs": 1,
            },
            "leave out warmup_epochs",
        ),
        ({"chunk_rows": 4, "batches": "alternating"}, "not alternating"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Training(**{"objective": [GA, GD], **settings})
    with pytest.raises(ValidationError, match="either last_layers or layers"):
        Full(last_layers=2, layers=[1])


@pytest.mark.parametrize("loss", ["gd", "idk"])
def test_ngdiff_refuses_to_learn_the_forget_set(loss: str) -> None:
    ngdiff = load_recipe("ngdiff")
    assert ngdiff.train is not None
    terms = [Term(loss=loss, on="forget"), GD]
    wrong = ngdiff.train.model_copy(update={"objective": terms})
    with pytest.raises(RecipeError, match=rf"train\.objective\.0: .*'{loss}'.* Use ga"):
        check_recipe(ngdiff.model_copy(update={"train": wrong}))
    plain = wrong.model_copy(update={"direction": "sum", "auto_rate": None})
    check_recipe(ngdiff.model_copy(update={"train": plain}))


@pytest.mark.parametrize("on", ["forget", "retain"])
def test_even_needs_the_checks_of_until(on: str) -> None:
    assert (pair := load_recipe("level").pair) is not None
    term = Term.model_validate({"loss": "level", "on": on, "even": True})
    until = pair.over.until if on == "retain" else None
    wrong = pair.over.model_copy(update={"objective": [term, GD], "until": until})
    with pytest.raises(RecipeError, match="even compares forget tokens .* last check of until"):
        check_recipe(load_recipe("ga").model_copy(update={"train": wrong}))
    check_recipe(load_recipe("level"))


def test_the_whole_set_can_be_one_step() -> None:
    training = Training(objective=[GD], batch_size=4, gradient_accumulation="epoch")
    assert training.accumulation(9) == 3 and training.accumulation(0) == 1


def test_a_pair_may_name_recipes(tmp_path: Path) -> None:
    single = tmp_path / "mine.yaml"
    single.write_text("{name: mine, train: {objective: [{loss: ga, on: forget}], epochs: 3}}")
    path = tmp_path / "mixed.yaml"
    path.write_text(f"{{name: mixed, pair: {{over: '{single}', under: zjuklab}}}}")
    mixed = load_recipe(path)
    assert mixed.training("over") == load_recipe(single).train
    assert mixed.training("under") == load_recipe("zjuklab").training("under")
    save_recipe(mixed, tmp_path / "written.yaml")
    assert load_recipe(tmp_path / "written.yaml") == mixed
    path.write_text("{name: mixed, pair: {over: zjuclab, under: zjuklab}}")
    with pytest.raises(RecipeError, match="Did you mean 'zjuklab'"):
        load_recipe(path)


def test_a_recipe_without_a_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("{name: none}")
    with pytest.raises(RecipeError, match="add `train` or `pair`"):
        load_recipe(path)


def test_an_unknown_key_deep_in_a_training_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "typing.yaml"
    path.write_text(
        "name: x\ntrain:\n  objective: [{loss: ga, on: forget}]\n  lora: {rank: 3, r: 2}"
    )
    with pytest.raises(
        RecipeError, match=r"line 4, train.lora.rank: unknown key 'rank'.*lora_alpha"
    ):
        load_recipe(path)


@pytest.mark.parametrize(
    ("term", "complaint"),
    [
        ({"loss": "npoo", "on": "forget"}, "train.objective.0: .*Did you mean 'npo'"),
        ({"loss": "npo", "on": "forget", "bata": 1}, "Did you mean 'beta'"),
        ({"loss": "idk", "on": "retain"}, "to the forget set only"),
        ({"loss": "kl", "on": "retain", "mask": "some"}, "mask of 'kl' must be"),
        ({"loss": "kl", "on": "retain", "mask": "all"}, "counts padding"),
    ],
)
def test_inconsistent_settings_are_found_beyond_the_schema(
    term: dict[str, Any], complaint: str
) -> None:
    recipe = Recipe(name="x", train=Training(objective=[Term(**term)]))
    with pytest.raises(RecipeError, match=complaint):
        check_recipe(recipe)


def test_a_fault_in_a_transform_is_found() -> None:
    steps: Any = [{"transform": "resegment", "mots": 2}]
    recipe = Recipe(name="x", train=Training(objective=[GD], transforms=steps))
    with pytest.raises(RecipeError, match=r"train.transforms.0: .*Did you mean 'most'"):
        check_recipe(recipe)


def test_the_mask_is_the_widest_that_a_term_reads_by_default_too() -> None:
    assert len(mask_of([GA, Term(loss="rmu", on="forget")])) == 2
    assert len(mask_of([GA])) == 1
