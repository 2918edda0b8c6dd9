"""Caches go by content: a copy is found again, a changed file under the same path is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeforget.data.schema import AnswerLikelihood, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.lm_eval import task_key
from mergeforget.evaluate.mmlu import mmlu_key
from mergeforget.evaluate.reference_models import check_other_model
from mergeforget.model_files import content_of
from mergeforget.models import load_model
from mergeforget.recipe import EvaluationSpec, change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.train.pair import base_content, prepare
from mergeforget.train.reference import _name


def test_a_copy_has_the_same_content_and_a_changed_file_another(
    tiny_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    before = content_of(copy)
    assert before == content_of(tiny_folder)
    (copy / "candidate.json").write_text("{}")  # ours, not the model's
    assert content_of(copy) == before
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert content_of(copy) != before


def test_mmlu_and_lm_eval_folders_count_by_content(tmp_path: Path) -> None:
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


def test_a_retrained_model_that_is_the_evaluated_one_is_an_error() -> None:
    def measured(*values: float) -> Measured:
        rows = [Row(str(i), "a", "b", "", "forget") for i in range(len(values))]
        likelihoods = [AnswerLikelihood(r, v, 3) for r, v in zip(rows, values, strict=True)]
        return Measured([], [], likelihoods=likelihoods)

    with pytest.raises(InputError, match="names the evaluated model itself"):
        check_other_model(measured(1.0, 2.5), measured(1.0 + 1e-7, 2.5))
    check_other_model(measured(1.0, 2.5), measured(1.0, 2.4))
    check_other_model(measured(), measured())
