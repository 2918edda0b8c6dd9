"""Caches go by content: a copy is found again, a changed file under the same path is noticed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeforget.attack.headline import run_verdict
from mergeforget.data.schema import AnswerLikelihood, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.lm_eval import task_key
from mergeforget.evaluate.mmlu import mmlu_key
from mergeforget.evaluate.reference_models import check_other_model
from mergeforget.evaluate.run_models import record_weights
from mergeforget.model_files import content_of
from mergeforget.models import load_model
from mergeforget.recipe import EvaluationSpec, change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score, write_scores
from mergeforget.search.store import Store, settings_of
from mergeforget.train.reference import _name
from mergeforget.train.run_rows import base_content, prepare


def test_content_hash_depends_on_content_not_on_path(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    before = content_of(copy)
    assert before == content_of(tiny_folder)
    (copy / "candidate.json").write_text("{}")  # ours, not the model's
    assert content_of(copy) == before
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert content_of(copy) != before


def test_mmlu_and_lm_eval_folders_are_cached_by_content(tmp_path: Path) -> None:
    for place in ("one", "two"):
        for part in ("dev", "test"):
            (tmp_path / place / part).mkdir(parents=True)
            (tmp_path / place / part / f"art_{part}.csv").write_text("Q,a,b,c,d,A\n")
    one, two = (EvaluationSpec(mmlu=str(tmp_path / n)) for n in ("one", "two"))
    assert mmlu_key(one) == mmlu_key(two)
    tasks = task_key("t", tmp_path / "one", None)
    assert tasks == task_key("t", tmp_path / "two", None)
    (tmp_path / "two" / "test" / "art_test.csv").write_text("Q,a,b,c,d,B\n")
    assert mmlu_key(one) != mmlu_key(two)
    assert tasks != task_key("t", tmp_path / "two", None)
    assert mmlu_key(EvaluationSpec()) is None


def test_resume_and_stored_references_notice_a_changed_base(
    tiny_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    for split in ("forget", "retain"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"input": "{split}?", "output": "yes"}}\n')
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("forget", "retain")}
    recipe = change(load_recipe("zjuklab"), model={"name": str(base)}, data=files)
    run = Run(tmp_path / "run")
    prepare(recipe, run)
    prepare(recipe, run, resume=True)
    kept, stored = base_content(recipe), _name(load_model(str(base)).model, [], (1,))
    model: Any = load_model(str(base)).model
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(base)
    save_recipe(recipe, run.recipe)
    assert base_content(recipe) != kept
    assert _name(load_model(str(base)).model, [], (1,)) != stored
    with pytest.raises(InputError, match="changed since"):
        prepare(recipe, run, resume=True)


def test_references_of_a_model_without_files_are_keyed_by_weights(make_model: Any) -> None:
    model = make_model()
    model.config._name_or_path = ""
    before = _name(model, [], (1,))
    with torch.no_grad():
        rows = model.model.layers[0].mlp.up_proj.weight
        rows[[0, 1]] = rows[[1, 0]]  # leaves every sum as it was
    assert _name(model, [], (1,)) != before


def test_a_search_detects_a_changed_scaling(
    tiny_folder: Path, save_adapter: Any, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    recipe = change(load_recipe("zjuklab"), model={"name": str(tiny_folder)})
    save_recipe(recipe, run.recipe)
    for seed, folder in enumerate((run.over, run.under)):
        save_adapter(folder, seed)
    store = Store(run)
    settings = settings_of(run, recipe, recipe.search, "")
    store.begin({k: v for k, v in settings.items() if k != "pair_scaling"}, again=False)
    store.begin(settings, again=False)  # a search by an earlier version
    path = run.over / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    with pytest.raises(InputError, match="pair_scaling was"):
        store.begin(settings_of(run, recipe, recipe.search, ""), again=False)


def test_scores_of_an_adapter_that_was_replaced_do_not_count(
    save_adapter: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    candidate = save_adapter(run.candidates / "ties-factors-d0.70", 1)
    leak = Score("leak_rate", "forget", 1.0, "lower", 8, chance=0.0)
    write_scores(run.scores, {candidate.name: [leak]})
    record_weights(run, [candidate.name, "base"])
    assert run_verdict(run, candidate.name).state == "NOT FORGOTTEN"
    write_scores(run.scores, {candidate.name: [replace(leak, value=0.0)]})
    assert run_verdict(run, candidate.name).asked == 8
    save_adapter(candidate, 2)
    assert run_verdict(run, candidate.name).asked == 0
    assert "changed after it was measured" in capsys.readouterr().err


def test_a_retrained_model_that_is_the_evaluated_one_is_an_error() -> None:
    def measured(*values: float) -> Measured:
        rows = [Row(str(i), "a", "b", "", "forget") for i in range(len(values))]
        likelihoods = [AnswerLikelihood(r, v, 3) for r, v in zip(rows, values, strict=True)]
        return Measured([], [], likelihoods=likelihoods)

    with pytest.raises(InputError, match="names the evaluated model itself"):
        check_other_model(measured(1.0, 2.5), measured(1.0 + 1e-7, 2.5))
    check_other_model(measured(1.0, 2.5), measured(1.0, 2.4))
    check_other_model(measured(), measured())
