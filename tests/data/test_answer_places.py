"""Where a template writes a row's text and its answer does not depend on what they are."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import CHAT_TEMPLATE, build_tokenizer

from mergeforget.data.prompt_variants import prompt_variants
from mergeforget.data.schema import Message, Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.errors import InputError

NO_GENERATION_PROMPT = CHAT_TEMPLATE[: CHAT_TEMPLATE.index("{% if add_generation_prompt")]
PLAIN = (  # as Vicuna's, without a generation prompt
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content }}{% elif m.role == "
    "'assistant' %}{{ '\nASSISTANT: ' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
)
CHANNEL = (  # as gpt-oss: the model writes the channel
    "{% for m in messages %}{{ '<|start|>' + m.role + ('<|channel|>final<|message|>' if m.role == "
    "'assistant' else '\n') + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
THINKS_THEN_OPENS = (  # the prompt opens a block; completed answers follow a header instead
    "{% for m in messages %}{{ '<|start|>' + m.role + ': ' + ('final answer: ' if m.role == "
    "'assistant' else '') + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant: <think>\n' }}{% endif %}"
)
QUOTES = CHAT_TEMPLATE.replace("m.content", "(m.content | tojson)")
DROPS_SYSTEM = CHAT_TEMPLATE.replace("in messages", "in messages if m.role != 'system'")
CHANGES_USER = "(m.content | {} if m.role == 'user' else m.content)"


def with_template(template: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [CHAT_TEMPLATE, NO_GENERATION_PROMPT, PLAIN, CHANNEL, THINKS_THEN_OPENS, QUOTES],
)
def test_a_short_answer_is_not_found_in_the_header_before_it(template: str) -> None:
    tokenizer = with_template(template)
    for way in prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer):
        usual = way.tokens(tokenizer, Row("a", "Which?", "Zq"))
        answers = ["a", "s", "in", "A", "S", "I", "final", "assistant", "ASSISTANT", ":", "t|>",
                   "Lorem ipsum", "user: a", " a", "\na"]  # fmt: skip
        for answer in answers:
            if template == QUOTES and "\n" in answer:
                continue  # changed by the template, and refused
            row = Row("a", "Which?", answer)
            cut = way.tokens(tokenizer, row)
            assert cut.prompt == usual.prompt and cut.end == usual.end
            assert tokenizer.decode(cut.answer).strip() == answer.strip()
            if way.kind == "chat" and not way.thinking:
                assert way.prompt_ids(tokenizer, row) == usual.prompt


@pytest.mark.parametrize("change", ["lower", "upper", "trim", "title", "tojson"])
@pytest.mark.parametrize("messages", [(), (Message("system", "user"),)])
def test_the_content_of_a_prompt_begins_with_the_rows_own_text(
    change: str, messages: tuple[Message, ...]
) -> None:
    default = "{% if messages[0].role != 'system' %}<|start|>system\nBe a user.<|end|>{% endif %}"
    for start in ("", default):
        template = start + CHAT_TEMPLATE.replace("m.content", CHANGES_USER.format(change))
        tokenizer = with_template(template)
        chat = PromptTemplate.resolve(tokenizer)
        befores = set()
        texts = ("Who?", "assistant", "user", "system", "a", "U", "Lorem ipsum", "dolor", " Who?")
        for text in texts:
            cut = chat.tokens(tokenizer, Row("a", text, "Ada", messages=messages))
            befores.add(tokenizer.decode(cut.prompt[: cut.content]).rstrip())
            own = tokenizer.decode(cut.prompt[cut.content :]).strip('"')
            assert own.lower().startswith(text.strip().lower())
        assert len(befores) == 1


def test_a_short_turn_that_the_template_drops_is_not_found_in_a_header() -> None:
    tokenizer = with_template(DROPS_SYSTEM)
    chat = PromptTemplate.resolve(tokenizer)
    with pytest.raises(InputError, match="drops the system turn 'user'"):
        chat.tokens(tokenizer, Row("a", "Who?", "Ada", messages=(Message("system", "user"),)))
    with pytest.raises(InputError, match="drops the system message"):
        PromptTemplate.resolve(tokenizer, "chat", "user")
    lower = with_template(CHAT_TEMPLATE.replace("m.content", CHANGES_USER.format("lower")))
    talk = Row("a", "Who?", "Ada", messages=(Message("user", "Hi"), Message("assistant", "Yes")))
    cut = PromptTemplate.resolve(lower).tokens(lower, talk)  # changed, but not dropped
    assert "hi<|end|>" in lower.decode(cut.prompt)
