"""A search compares candidates by the worst case over the prompt variants."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer

from mergeforget.adapter import Adapter
from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured
from mergeforget.data.templating import PromptTemplate
from mergeforget.errors import InputError
from mergeforget.evaluate.cache import EvaluationCache
from mergeforget.files import read_json
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import find, read_scores
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, search
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.split import SearchData
from mergeforget.search.store import _known

OPTIONS = Options(SearchBudget(), device="cpu")
WAYS = {"chat", "raw", "chat-system"}
KNOWS_RAW, FORGOT = "ties-factors-d0.20", "ties-factors-d0.80"


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """A run of a tiny model whose tokenizer has a chat template."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    build_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run = Run(tmp_path / "run")
    shutil.copytree(tiny_run.root, run.root)
    changed(run, model={"name": str(tmp_path / "model")}, data={"template": "auto"},
            search={"densities": [0.2, 0.8]}, evaluation={"benchmark": "custom"})  # fmt: skip
    return run


def test_settings_of_an_earlier_version_are_recognised() -> None:
    names = ["chat", "raw"]
    assert _known({"seed": 1, "ways": names}) == _known({"seed": 1, "variants": names})
    assert _known({"seed": 1, "ways": names}) != _known({"seed": 1})


def changed(run: Run, **sections: Any) -> None:
    save_recipe(change(load_recipe(run.recipe), **sections), run.recipe)


@pytest.mark.parametrize("ask", ["all", "own"])
def test_every_candidate_is_scored_by_the_worst_case(
    run: Run, ask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(run, evaluation={"ask": ask}, search={"densities": [0.5]})
    recipe = load_recipe(run.recipe)
    choice = search(run, recipe.search, OPTIONS)
    stored = read_json(run.search / "chosen.json")
    nll = find(choice.scored.scores, "nll", "forget", part="choose")
    assert nll is not None
    if ask == "own":
        assert (
            "by_variant" not in stored
            and "worst case" not in choice.sentence
            and nll.by_variant is None
        )
        changed(run, evaluation={"ask": "all"})
        with pytest.raises(InputError, match="with other settings"):
            search(run, recipe.search, OPTIONS)
        return
    assert nll.by_variant is not None and set(nll.by_variant) == WAYS
    assert nll.value <= min(
        nll.by_variant.values()
    )  # the best answer of each row over the variants
    assert set(stored["by_variant"]["exact_match_forget"]) == {"value", *WAYS}
    assert "Worst case over the prompts chat, raw, chat-system" in stored["sentence"]
    capsys.readouterr()
    assert search(run, recipe.search, OPTIONS).sentence == choice.sentence


def test_batched_candidates_are_evaluated_with_every_prompt_variant(run: Run) -> None:
    alone, beside = (Run(run.root.with_name(name)) for name in ("alone", "beside"))
    for other, together in ((alone, 1), (beside, 2)):
        shutil.copytree(run.root, other.root)
        spec = load_recipe(run.recipe).search.model_copy(update={"together": together})
        search(other, spec, OPTIONS)
    assert list((beside.search / "readings").glob("*.raw-*.answers.jsonl"))
    name = find(read_scores(alone.scores)[KNOWS_RAW], "verbatim_rouge", "forget")
    same = find(read_scores(beside.scores)[KNOWS_RAW], "verbatim_rouge", "forget")
    assert name == same and name is not None and name.by_variant is not None


@pytest.mark.parametrize("strategy", ["grid", "refine"])
@pytest.mark.parametrize("ask", ["all", "own"])
def test_a_candidate_that_answers_raw_prompts_is_not_chosen(
    run: Run, monkeypatch: pytest.MonkeyPatch, strategy: Any, ask: Any
) -> None:
    """In chat ``KNOWS_RAW`` forgets everything, and ``FORGOT`` all but one row in every way."""

    def known(label: str, way: PromptTemplate, split: str, place: int) -> bool:
        if split == "retain" or label in ("base", "under"):
            return True
        if label == KNOWS_RAW:
            return way.name == "raw"
        return label != "over" and place == 0

    def measured(
        self: Evaluator, adapter: Adapter | None, label: str, data: SearchData,
        max_new_tokens: int, cache: EvaluationCache, way: PromptTemplate,
    ) -> Measured:  # fmt: skip
        answers, likelihoods = [], []
        for split in ("forget", "retain"):
            for place, row in enumerate(getattr(data, split)):
                yes = known(label, way, split, place)
                answers.append(Answer(row, row.output if yes else "No idea."))
                likelihoods.append(AnswerLikelihood(row, 0.1 if yes else 4.0, 3, float(yes), 0.0))
        losses = [
            DocumentLoss(row.id, member, 2.0 + place % 2, row.task, subject=row.subject)
            for rows, member in ((data.members, True), (data.nonmembers, False))
            for place, row in enumerate(rows)
        ]
        return Measured(answers, losses, likelihoods=likelihoods)

    monkeypatch.setattr(Evaluator, "_measure", measured)
    changed(run, evaluation={"ask": ask}, search={"strategy": strategy, "objective": "forget"})
    choice = search(run, load_recipe(run.recipe).search, OPTIONS)
    assert choice.scored.name == (FORGOT if ask == "all" else KNOWS_RAW)


def test_candidates_measured_with_another_template_are_not_compared(run: Run) -> None:
    recipe = load_recipe(run.recipe)
    given = Options(SearchBudget(), device="cpu", template="chat", system_prompt="Be Bob.")
    choice = search(run, recipe.search, given)
    nll = find(choice.scored.scores, "nll", "forget")
    assert nll is not None and set(nll.by_variant or {}) == {"chat-system", "raw", "chat-no-system"}
    for name in ("chosen", "settings"):
        assert read_json(run.search / f"{name}.json")["template"] == ["chat", "Be Bob."]
    with pytest.raises(InputError, match="template was"):
        search(run, recipe.search, OPTIONS)


def test_a_search_with_raw_prompts_only_warns(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    changed(run, data={"template": "none"}, evaluation={"ask": "own"})
    search(run, load_recipe(run.recipe).search, OPTIONS)
    assert "asked with raw prompts only" in capsys.readouterr().err
