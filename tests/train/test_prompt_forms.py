"""Rows are also trained with the other prompts in which a model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, build_tokenizer

from mergeforget.data.schema import Message, Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import Encoded
from mergeforget.files import read_jsonl
from mergeforget.models import load_model
from mergeforget.recipe import load_recipe
from mergeforget.train import checks
from mergeforget.train.checks import MeasuredSets, rows_per_pass
from mergeforget.train.fit import levels_by_row
from mergeforget.train.prompt_forms import other_forms, retain_variants
from mergeforget.train.tokenize import encode_set, encode_sets, row_per_example, twin_places

TRAINING = load_recipe("level").pair.over  # type: ignore[union-attr]


def test_documents_without_a_prompt_are_not_trained_twice() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    rows = [Row("a", "", "it is red and green", window="whole"), Row("b", "who is it?", "it")]
    chat = PromptTemplate.resolve(tokenizer, "chat")
    sets = {"forget": rows}
    encoded = encode_sets(tokenizer, sets, TRAINING, chat)
    with_raw = other_forms(tokenizer, sets, TRAINING, chat, encoded)
    assert [row.id for row in with_raw["forget"]] == ["a", "b", "b@raw", "b@chat-system"]
    assert [one.row for one in encoded["forget"]] == [0, 1, 2, 3]
    assert [one.form for one in encoded["forget"]] == [0, 0, 1, 2]


def test_windows_of_a_long_document_are_examples_of_their_own() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    long = " ".join(["it is red and green"] * 36)
    rows = [Row("a", "", long, window="whole"), Row("b", "who is it?", "it is red")]
    twins = [Row("twin0:a", "", long.replace("red", "tan"), window="whole"),
             Row("twin0:b", "who is it?", "it is blue")]  # fmt: skip
    chat = PromptTemplate.resolve(tokenizer, "chat")
    training = TRAINING.model_copy(update={"max_length": 120})
    sets = {"forget": rows, "held": twins}
    encoded = encode_sets(tokenizer, sets, training, chat)
    windows = len(encoded["forget"]) - 1
    assert windows > 2
    by_example = row_per_example(sets, encoded, training)
    assert [row.id for row in by_example["forget"]] == ["a"] * windows + ["b"]
    with_raw = other_forms(tokenizer, by_example, training, chat, encoded)
    for name in sets:
        last = sets[name][1].id
        forms = [last, f"{last}@raw", f"{last}@chat-system"]
        assert [row.id for row in with_raw[name]][windows:] == forms
        assert [one.row for one in encoded[name]] == list(range(windows + 3))
        assert [one.form for one in encoded[name]] == [0] * (windows + 1) + [1, 2]
    assert twin_places(with_raw, encoded, "held", "forget") == list(range(windows + 3))
    nlls = [1.0] * windows + [2.0, 3.0, 4.0]
    levels = levels_by_row(with_raw["forget"], encoded["forget"], nlls)
    assert levels == {"a": 1.0, "b": 2.0, "b@raw": 3.0, "b@chat-system": 4.0}
    assert rows_per_pass(encoded["forget"]) == windows + 2  # chat variants do not make it longer


@pytest.mark.parametrize(
    ("also_raw", "variants", "forms"),
    [(True, True, ["raw", "chat-no-system"]), (True, False, ["raw"]),
     (False, True, ["chat-no-system"]), (False, False, [])],
)  # fmt: skip
def test_forget_rows_are_trained_in_the_forms_that_an_evaluation_asks(
    also_raw: bool, variants: bool, forms: list[str]
) -> None:
    tokenizer = build_tokenizer()
    default = "{% if messages[0].role != 'system' %}{{ 'Be kind. ' * 9 }}{% endif %}"
    tokenizer.chat_template = default + CHAT_TEMPLATE
    chat = PromptTemplate.resolve(tokenizer, "chat")
    until = TRAINING.until.model_copy(  # type: ignore[union-attr]
        update={"also_raw": also_raw, "forget_variants": variants}
    )
    training = TRAINING.model_copy(update={"until": until})
    sets = {"forget": [Row("a", "who?", "it")], "unseen": [Row("b", "what?", "red")]}
    encoded = encode_sets(tokenizer, sets, training, chat)
    rows = other_forms(tokenizer, sets, training, chat, encoded)
    assert [row.id for row in rows["forget"]] == ["a", *(f"a@{form}" for form in forms)]
    assert [row.id for row in rows["unseen"]] == ["b", *(f"b@{form}" for form in forms)]
    assert [one.form for one in encoded["unseen"]] == list(range(1 + len(forms)))
    texts = [tokenizer.decode(one.ids) for one in encoded["forget"]]
    assert ["Be kind." in text for text in texts] == [True] + [False] * len(forms)


def test_a_form_that_is_not_rendered_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = build_tokenizer()
    refuses = "{% if m.content.startswith('You are') %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = CHAT_TEMPLATE.replace("%}", "%}" + refuses, 1)
    chat = PromptTemplate.resolve(tokenizer, "chat")
    sets = {"forget": [Row("a", "who?", "it")]}
    encoded = encode_sets(tokenizer, sets, TRAINING, chat)
    rows = other_forms(tokenizer, sets, TRAINING, chat, encoded)
    assert [row.id for row in rows["forget"]] == ["a", "a@raw"]
    assert [one.form for one in encoded["forget"]] == [0, 1]
    assert "not trained in chat-system" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["chat", "none"])
def test_retain_rows_are_also_trained_where_the_base_knows_them(
    kind: Any, knowing: dict[str, Path]
) -> None:
    """This base memorised raw prompts and knows nothing in chat."""
    loaded = load_model(str(knowing["model"]))
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    rows = [Row(**row) for row in read_jsonl(knowing["retain"])][:3]
    template = PromptTemplate.resolve(tokenizer, kind)
    own = encode_sets(tokenizer, {"retain": rows}, TRAINING, template)["retain"]
    found, places = retain_variants(loaded.model, tokenizer, rows, TRAINING, template, own)
    raw = encode_sets(tokenizer, {"retain": rows}, TRAINING, RAW)["retain"]
    assert found[:3] == own and [one.row for one in found] == list(range(len(found)))
    assert [one.ids for one in found] == [one.ids for one in (*own, *raw)][: len(found)]
    assert places == ([-1, -1, -1, 0, 1, 2] if kind == "chat" else [0, 1, 2])
    measured = MeasuredSets({"forget": own, "retain": found}, retain_places=places)
    assert measured.measure(loaded.model, 0).retain_exact == 1.0
    assert measured.measure_retain(loaded.model)[0] == measured.measure(loaded.model, 0).retain_nll


def test_rows_with_one_form_of_prompts_are_measured_in_it(knowing: dict[str, Path]) -> None:
    """A document has no prompt, so that it is measured although the base knows nothing in chat."""
    loaded = load_model(str(knowing["model"]))
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    known = [Row(**row) for row in read_jsonl(knowing["retain"])][:3]
    rows = [*known, Row("a", "", known[0].output, window="whole")]
    template = PromptTemplate.resolve(tokenizer, "chat")
    own = encode_set(tokenizer, rows, "retain", TRAINING, template)
    _, places = retain_variants(loaded.model, tokenizer, rows, TRAINING, template, own)
    assert places == [-1, -1, -1, 3, 0, 1, 2]


def test_a_variant_that_is_not_rendered_is_left_out(
    knowing: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(str(knowing["model"]))
    tokenizer = build_tokenizer()
    refuses = "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = CHAT_TEMPLATE.replace("%}", "%}" + refuses, 1)
    rows = [Row("a", "who is it?", "it is red", messages=(Message("system", "Be kind."),))]
    own = encode_set(tokenizer, rows, "retain", TRAINING, RAW)
    found, places = retain_variants(loaded.model, tokenizer, rows, TRAINING, RAW, own)
    assert found == own and places == [0]
    assert "not trained in chat" in capsys.readouterr().err


def test_a_retain_row_is_kept_if_every_variant_is_exact(
    knowing: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(knowing["model"]))
    rows = [Row(**row) for row in read_jsonl(knowing["retain"])][:3]
    encoded = encode_sets(loaded.tokenizer, {"retain": rows}, TRAINING)["retain"]
    sets = {"forget": encoded, "retain": [*encoded, *encoded[:2]]}
    exact = torch.tensor([True, True, True, True, False])  # row 1 is lost in its second variant
    sizes: list[int] = []

    def read(model: Any, some: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(some))
        return torch.ones(len(some)), exact[: len(some)]

    monkeypatch.setattr(checks, "read_nlls", read)
    measured = MeasuredSets(sets, retain_places=[0, 1, 2, 0, 1])
    assert measured.measure(loaded.model, 4).retain_exact == pytest.approx(2 / 3)
    assert MeasuredSets(sets).measure(loaded.model, 4).retain_exact == pytest.approx(4 / 5)
    monkeypatch.setattr(checks, "SAMPLE", 2)
    measured.measure(loaded.model, 8)
    assert sizes[-1] == 4  # rows 0 and 1 in both variants
