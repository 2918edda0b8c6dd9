"""A search compares candidates as the recipe asks, and asks the chosen one in every way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer

from mergeforget.files import read_json
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, search


@pytest.mark.parametrize("ask", ["all", "own"])
def test_the_chosen_candidate_is_asked_raw_and_in_chat(
    tiny_run: Run, tmp_path: Path, ask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = tmp_path / "model", build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    build_model().save_pretrained(model)
    tokenizer.save_pretrained(model)
    run = Run(tmp_path / "run")
    shutil.copytree(tiny_run.root, run.root)
    recipe = change(
        load_recipe(run.recipe),
        model={"name": str(model)},
        data={"template": "auto"},
        search={"densities": [0.5]},
        evaluation={"ask": ask, "benchmark": "custom"},
    )
    save_recipe(recipe, run.recipe)
    choice = search(run, recipe.search, Options(SearchBudget()))
    stored = read_json(run.search / "chosen.json")
    if ask == "own":
        assert "ways" not in stored and "worst case" not in choice.sentence
        return
    exact = stored["ways"]["exact_match_forget"]
    assert set(exact) == {"value", "chat", "raw", "chat-system"}
    assert "Asked chat, raw, chat-system, its worst case is" in stored["sentence"]
    capsys.readouterr()
    assert search(run, recipe.search, Options(SearchBudget())).sentence == choice.sentence
