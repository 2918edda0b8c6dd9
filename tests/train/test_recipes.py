"""Every packaged recipe trains a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl
from mergeforget.recipe import load_recipe, recipe_names
from mergeforget.run import Run
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.objective import check_recipe
from mergeforget.train.pair import train_model
from mergeforget.train_config import Full, Lora, Term, Training

SETS = {
    name: [Row(f"{name}{i}-qa0", f"Who is {i}?", f"Ada {i}. So. Yes!", "", name) for i in range(4)]
    for name in ("forget", "retain", "held", "selected", "unseen")
}


def small(training: Training) -> Training:
    """The same training, for a model of two layers and two steps or a few more."""
    terms = [_on_layer_1(term) for term in training.objective]
    whole = training.gradient_accumulation == "epoch"
    modules = training.lora.target_modules
    changes: dict[str, Any] = {
        "objective": terms, "epochs": 2 if whole else 1, "batch_size": 2,
        "gradient_accumulation": "epoch" if whole else 1, "max_length": 64, "warmup_epochs": 0,
        "snapshots": 1, "learning_rate": 1e-3,
        "lora": Lora(r=2, lora_alpha=4, target_modules=modules),
    }  # fmt: skip
    if training.full:
        changes["full"] = Full(layers=[0, 1], modules=training.full.modules)
    if training.until:
        changes["until"] = training.until.model_copy(update={"every": 1, "max_steps": 2})
    return training.model_copy(update=changes)


def _on_layer_1(term: Term) -> Term:
    more = {"layer": 1} if "layer" in term.arguments else {}
    return Term(**term.model_dump() | more)


CASES = [(n, place) for n in recipe_names() for place in load_recipe(n).trainings()]


@pytest.mark.parametrize(("name", "place"), CASES, ids=lambda v: str(v))
def test_recipe_runs_two_steps(
    name: str, place: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    recipe = load_recipe(name)
    check_recipe(recipe)
    training = small(recipe.trainings()[place])
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    job = TrainingJob(Run(tmp_path), "adapter", checkpoint_seconds=1e9)
    train = train_model if training.full else train_adapter
    read: set[str] = {"forget", "retain", *(t.on for t in training.objective)}
    read |= {"selected", "unseen"} if training.until else set()
    sets: dict[str, list[Row]] = {n: rows for n, rows in SETS.items() if n in read}
    folder = train(model, tiny_tokenizer, sets, training, job)
    lines = read_jsonl(tmp_path / "history.jsonl")
    assert len(lines) >= 2 and all(x["grad_norm"] > 0 for x in lines)
    own = [x for x in lines if x["stage"] == "adapter"]  # without that of a reinforced model
    assert {k for x in own for k in x["terms"]} == {t.label for t in training.objective}
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert bool(changed) == (training.full is not None)
    assert any(folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_has_a_source_and_notes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.source and recipe.notes
