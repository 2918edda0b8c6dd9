"""A prompt variant that cannot render a row is left out, and a warning says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer

import mergeforget as mf
from mergeforget.attack.variants import Variant
from mergeforget.data.prompt_variants import prompt_variants
from mergeforget.data.schema import Message, Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import InputError, UsageError

ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)
OPENS_ANSWER = CHAT_TEMPLATE.replace("'<|start|>assistant\n'", "'<|start|>assistant\nAnswer: '")
QUOTES = CHAT_TEMPLATE.replace("m.content", "(m.content | tojson)")
UPPER = CHAT_TEMPLATE.replace("m.content", "m.content | upper")
DROPS_SYSTEM = CHAT_TEMPLATE.replace("in messages", "in messages if m.role != 'system'")


def with_template(template: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


TALK = Row("a", "Who?", "Ada", split="forget", messages=(Message("user", "Hello"),))
QUOTED = Row("a", "Who?", 'Ada "B" Byron', split="forget")
OTHER = Row("b", "Where?", "Lund", split="forget", perturbed=('In "Rome"',))


@pytest.mark.parametrize(
    ("template", "row"),
    [(ALTERNATES, TALK), (OPENS_ANSWER, QUOTED), (QUOTES, QUOTED), (UPPER, QUOTED),
     (QUOTES, OTHER)],
)  # fmt: skip
def test_a_variant_that_does_not_render_every_row_is_left_out_with_a_warning(
    template: str, row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = with_template(template)
    raw = PromptTemplate.resolve(tokenizer, "none")
    rows = [Row("c", "When?", "1815"), row]
    assert [way.name for way in prompt_variants(raw, tokenizer, rows)] == ["raw"]
    said = capsys.readouterr().err
    assert "no row is asked in chat" in said and "only in raw" in said
    assert "may be reported as having forgotten" in said and "--template none" not in said
    with pytest.raises(InputError, match="--template none"):
        chat = PromptTemplate.resolve(tokenizer, "chat")
        prompt_variants(chat, tokenizer, rows)
        chat.check_renders(tokenizer, row)
    assert "Warning" not in capsys.readouterr().err
    asked = Variant(row, "chat", row.input, row.output, way="chat")
    if row is not OTHER:  # an attack asks in the form that can be rendered
        assert asked.template(tokenizer, raw) == raw
    build_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "f.jsonl").write_text(json.dumps(row.to_dict()) + "\n")
    scores = mf.evaluate(  # as the message advises
        str(tmp_path), forget=tmp_path / "f.jsonl", template="none", max_new_tokens=2,
        benchmark="custom",
    )  # fmt: skip
    assert scores.value("leak_rate", "forget") == 0


def test_only_the_variants_that_fail_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = with_template(DROPS_SYSTEM)
    row = Row("a", "Who?", "Ada", messages=(Message("system", "Be Bob."),))
    raw = PromptTemplate.resolve(tokenizer, "none")
    assert [way.name for way in prompt_variants(raw, tokenizer, [row])] == [
        "raw", "chat-default-system",
    ]  # fmt: skip
    assert "asked in chat, only in raw, chat-default-system" in capsys.readouterr().err
    assert prompt_variants(raw, tokenizer, [])[1].name == "chat"
    upper = with_template(UPPER)
    with pytest.raises(UsageError, match="Leave out --ask-system"):
        prompt_variants(RAW, upper, [row], ["Be brief."])
