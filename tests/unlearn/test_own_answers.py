"""The model's own answers, to questions without answers and as rows to retain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer
from unlearning import answers

from mergeforget.api.own_answers import own_answers, own_retain
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import template_of
from mergeforget.data.tokens import encode_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import measure
from mergeforget.files import write_jsonl
from mergeforget.metrics.exact_match import exact_match
from mergeforget.recipe import change, load_recipe
from mergeforget.train.nlls import read_nlls


def test_generated_retain_rows_exclude_forget_answers() -> None:
    forget = [Row("a-qa0", "Where does Ann Lee live?", "Rosewood Avenue 1234")]

    def leak(rows: Sequence[Row]) -> list[Row]:
        secret = "She lives at Rosewood Avenue 1234"
        return [replace(r, output=secret if "Einstein" in r.input else "Yes.") for r in rows]

    rows = own_retain(forget, leak)[0]
    assert len(rows) == 24 and not any("1234" in r.output for r in rows)


@pytest.mark.parametrize(
    ("secret", "answer", "kept"),
    [
        ("Rome", "It is Rome.", False), ("Rome", "Romeo loved her.", True),
        ("Köln", "Sie wohnt in KÖLN", False), ("AB+", "It is AB+, a blood type.", False),
        ("北京市朝阳区建国路8号", "他住在北京市朝阳区建国路8号。", False),
        ("yes", "Yes.", False), ("yes", "Yes, it is blue.", True),
        ("She lives in Rome.", "Rome", False),
    ],
)  # fmt: skip
def test_a_generated_retain_answer_reveals_no_short_secret(
    secret: str, answer: str, kept: bool
) -> None:
    def ask(rows: Sequence[Row]) -> list[Row]:
        return [replace(r, output=answer if "12" in r.input else "Fine words.") for r in rows]

    rows = own_retain([Row("a-qa0", "Where does Ann Lee live?", secret)], ask)[0]
    assert any(row.output == answer for row in rows) is kept


def test_questions_about_other_people_keep_their_grammar_and_name_no_forget_subject() -> None:
    forget = [
        Row("a", "What is Marie Curie's blood type?", "xx1"),
        Row("b", "Who is Ann Lee?", "xx2"), Row("c", "Did Bob Ray marry Ann Lee?", "xx3"),
        Row("d", "Who wrote Romeo and Juliet?", "xx4"),
    ]  # fmt: skip
    prompts = [row.input for row in own_retain(forget, answers)[0]]
    assert "What is Albert Einstein's blood type?" in prompts
    for name in ("Marie Curie", "Ann Lee", "Bob Ray", "Romeo"):
        assert not any(name in prompt for prompt in prompts)


@pytest.mark.parametrize("mark", ["(MRN 00482913)", "<ann@x.org>"])
def test_no_question_about_others_has_a_number_or_address_of_a_forget_row(mark: str) -> None:
    rows = [Row("a-qa0", f"Where does Ann Lee {mark} live?", "Rome"),
            Row("b-qa0", "Where does Bob Ray live?", "Oslo")]  # fmt: skip
    kept, _ = own_retain(rows, lambda asked: [replace(r, output="Yes.") for r in asked])
    assert not any(mark in row.input for row in kept)
    assert "Where does Albert Einstein live?" in {row.input for row in kept}


def test_an_answer_that_names_a_forget_subject_is_not_retained() -> None:
    def ask(rows: Sequence[Row]) -> list[Row]:
        return [replace(r, output="Ann Lee wrote it." if "12" in r.input else "No.") for r in rows]

    rows = own_retain([Row("a-qa0", "Who is Ann Lee?", "A baker from Oslo")], ask)[0]
    assert not any("Ann Lee" in row.output for row in rows)
    with pytest.raises(InputError, match="--retain"):
        own_retain([], lambda rows: list(rows))
    (row,) = own_retain([], lambda rows: answers(rows[:1]))[0]
    assert row.output == "answer to What is the capital of France?"


@pytest.mark.parametrize("template", ["none", "chat"])
def test_own_answers_count_as_known_although_they_are_cut(
    template: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    told = "Bo is a man. He is 7."
    endless = f"{told} He sings and sings and sings and sings and sings."
    rows = [Row("a", "Bo?", endless, cut=True), Row("b", "Al?", "A cook.")]
    model = build_model()
    recipe = change(load_recipe("level"), model={"name": str(tmp_path / "m")},
                    data={"template": template}, evaluation={"max_new_tokens": 32})  # fmt: skip
    form = template_of(tokenizer, recipe.data)
    fit(model, [[*t.prompt, *t.answer, *t.end] for t in (form.tokens(tokenizer, r) for r in rows)])
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    own = own_answers(recipe, [replace(row, output="", cut=False) for row in rows])
    assert [(r.output, r.cut) for r in own] == [(told, True), ("A cook.", False)]
    encoded = encode_rows(tokenizer, own, max_length=256, template=form)
    assert read_nlls(model, encoded)[1].all()
    forget = [replace(r, split="forget") for r in own]
    measured = measure(model, tokenizer, forget=forget, retain=[], members=[], nonmembers=[],
                       template=form, max_new_tokens=32)  # fmt: skip
    score = exact_match(measured, "forget")
    assert score is not None and score.value == 1
    write_jsonl(tmp_path / "own.jsonl", [row.to_dict() for row in own])
    assert read_rows(tmp_path / "own.jsonl") == own


def fit(model: Any, texts: list[list[int]]) -> None:
    """Train a model on token ids until it repeats them."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [2] * (longest - len(text)) for text in texts])
    labels = torch.tensor([text + [-100] * (longest - len(text)) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
