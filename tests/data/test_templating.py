"""Prompts become tokens raw or in chat, exactly as the tokenizer's template renders them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHAT_TEMPLATE, SPECIAL, build_tokenizer

from mergeforget.data.prompt_variants import prompt_variants
from mergeforget.data.schema import Message, Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import encode
from mergeforget.errors import InputError, UsageError
from mergeforget.outputs import ANSWER
from mergeforget.recipe import change, load_recipe, recipe_names, recipe_path, save_recipe
from mergeforget.train.memorise import memorised_folder
from mergeforget.train.tokenize import encode_sets

TURN = "{% for m in messages %}{{ '<|start|>' + m.role + ': ' + m.content + '<|end|>\n' }}"
END = "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant: ' }}{% endif %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|start|>system: Be Bob.<|end|>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' <|end|>' }}{% endif %}{% endfor %}"
)
THINKS = (  # the prompt opens a block that a completed answer does not contain
    "{% for m in messages %}{{ '<|start|>' + m.role + ': ' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant: <think>\n' }}{% endif %}"
)
EMPTY_BLOCK = (  # answers follow an empty block that is not in the prompt
    "{% for m in messages %}{{ '<|start|>' + m.role + ': ' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|end|>' }}" + END
)
NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}" + END.replace(
    "<|start|>", ""
)
ROW = Row("a", "Where is Ada?", "In Lund.")


def with_template(template: str | None) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, DEFAULT + TURN + END, LLAMA2, EMPTY_BLOCK, NO_SYSTEM + TURN + END]
)
def test_chat_tokens_are_those_of_the_rendered_conversation(template: str) -> None:
    tokenizer = with_template(template)
    chat = PromptTemplate.resolve(tokenizer)
    cut = chat.tokens(tokenizer, ROW)
    turns = [{"role": "user", "content": ROW.input}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    full = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": ROW.output}])
    ids = [*cut.prompt, *cut.answer, *cut.end]
    assert full["input_ids"][: len(ids)] == ids
    assert cut.prompt[: len(asked)] == asked and cut.prompt == chat.prompt_ids(tokenizer, ROW)
    assert tokenizer.decode(cut.answer).strip() == ROW.output
    assert cut.end[-1] == tokenizer.eos_token_id == chat.stop_ids(tokenizer)[0]
    assert tokenizer.decode(cut.prompt[cut.content :]).startswith(ROW.input)


def test_the_thinking_block_that_a_prompt_opens_is_closed_before_the_answer() -> None:
    tokenizer = with_template(THINKS)
    cut = PromptTemplate.resolve(tokenizer).tokens(tokenizer, ROW)
    assert tokenizer.decode(cut.prompt).endswith("assistant: <think>\n\n</think>\n\n")
    assert tokenizer.decode(cut.answer) == ROW.output and cut.end == [tokenizer.eos_token_id]


def test_a_template_without_an_end_token_ends_answers_with_eos() -> None:
    tokenizer = with_template(NO_END)
    cut = PromptTemplate.resolve(tokenizer).tokens(tokenizer, ROW)
    assert cut.end == [tokenizer.eos_token_id] and tokenizer.decode(cut.answer) == ROW.output


def test_whitespace_of_answers_is_kept_if_the_template_keeps_it() -> None:
    tokenizer = with_template(CHAT_TEMPLATE)
    chat = PromptTemplate.resolve(tokenizer)
    cut = chat.tokens(tokenizer, Row("a", "Q", "\n  code\n"))
    assert tokenizer.decode(cut.answer) == "\n  code\n"


def test_without_a_chat_template_auto_is_raw_and_chat_is_refused() -> None:
    tokenizer = with_template(None)
    assert PromptTemplate.resolve(tokenizer) == RAW
    with pytest.raises(InputError, match="has no chat template"):
        PromptTemplate.resolve(tokenizer, "chat")
    with pytest.raises(UsageError, match="part of a chat"):
        PromptTemplate.resolve(tokenizer, "auto", "Be brief.")


def test_a_system_message_that_the_template_refuses_or_leaves_out_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="no system role"):
        PromptTemplate.resolve(with_template(NO_SYSTEM + TURN + END), "chat", "Be brief.")
    with pytest.raises(InputError, match="drops the system message"):
        PromptTemplate.resolve(with_template(LLAMA2), "chat", "Be brief.")


def test_a_template_that_changes_answers_is_refused() -> None:
    tokenizer = with_template(CHAT_TEMPLATE.replace("m.content", "m.content | upper"))
    with pytest.raises(InputError, match="does not render answers"):
        PromptTemplate.resolve(tokenizer, "chat")
    assert PromptTemplate.resolve(tokenizer, "none").kind == "none"


def test_a_row_includes_its_system_message_and_earlier_turns() -> None:
    tokenizer = with_template(CHAT_TEMPLATE)
    history = (Message("system", "Be Eve."), Message("user", "Hi"), Message("assistant", "Yo"))
    row = Row("a", "Where?", "Here.", messages=history)
    text = PromptTemplate.resolve(tokenizer, "chat", "Be Bob.").prompt_text(tokenizer, row)
    assert text.count("Be Eve.") == 1 and "Be Bob." not in text and text.index("Yo") > 0
    without = prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer, [row])[-1]
    assert "Be Eve." not in without.prompt_text(tokenizer, row)


def test_every_prompt_variant_is_used_once() -> None:
    names = {
        template: [
            way.name for way in prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer)
        ]
        for template in (None, CHAT_TEMPLATE, DEFAULT + TURN + END, NO_SYSTEM + TURN + END)
        for tokenizer in [with_template(template)]
    }
    assert list(names.values()) == [
        ["raw"],
        ["chat", "raw", "chat-system"],
        ["chat", "raw", "chat-no-system"],
        ["chat", "raw"],
    ]
    tokenizer = with_template(CHAT_TEMPLATE)
    brief = PromptTemplate.resolve(tokenizer, "chat", "Be brief.")
    assert [way.name for way in prompt_variants(brief, tokenizer)] == [
        "chat-system",
        "raw",
        "chat-no-system",
    ]
    assert len({way.key for way in prompt_variants(brief, tokenizer)}) == 3
    empty = PromptTemplate.resolve(tokenizer, "chat", "")
    assert [way.name for way in prompt_variants(empty, tokenizer)] == [
        "chat-empty-system",
        "raw",
        "chat-system",
    ]


def test_prompt_variants_have_distinct_names_and_include_the_defaults() -> None:
    own = [Row("a", "Q", "A", messages=(Message("system", "Be Eve."),))]
    for template in (CHAT_TEMPLATE, DEFAULT + TURN + END, DEFAULT + THINKS):
        tokenizer = with_template(template)
        for system in (None, "", "Be brief."):
            for rows in ([ROW], own):
                ways = prompt_variants(
                    PromptTemplate.resolve(tokenizer, "chat", system), tokenizer, rows
                )
                names = [way.name for way in ways]
                assert len(set(names)) == len(names) and "raw" in names
                texts = [way.prompt_text(tokenizer, rows[0]) for way in ways]
                assert len(set(texts)) == len(texts)
                if template != CHAT_TEMPLATE:
                    assert any("Be Bob." in text for text in texts)
                assert any("Be Eve." in text for text in texts) == (rows is own)


def test_a_thinking_template_adds_a_prompt_variant() -> None:
    tokenizer = with_template(THINKS)
    *_, thinking = prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer)
    assert thinking.name == "chat-thinking"
    turns = [{"role": "user", "content": ROW.input}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert thinking.prompt_ids(tokenizer, ROW) == asked
    assert thinking.answer_in("Lund? Yes.\n</think>\n\nIn Lund.").strip() == "In Lund."
    assert thinking.answer_in("Lund? Perhaps") == "Lund? Perhaps"
    chat = PromptTemplate.resolve(tokenizer)
    assert chat.answer_in("a</think>b") == "a</think>b"
    assert chat.answer_in("<think>Hm.</think>b") == "b"  # opened by the model itself
    assert thinking.tokens(tokenizer, ROW) == chat.tokens(tokenizer, ROW)


def test_a_block_that_completed_answers_do_not_have_is_left_out_in_a_variant() -> None:
    tokenizer = with_template(THINKS)
    chat = PromptTemplate.resolve(tokenizer)
    bare = next(w for w in prompt_variants(chat, tokenizer) if w.name == "chat-no-thinking")
    cut = bare.tokens(tokenizer, ROW)
    turns = [{"role": "user", "content": ROW.input}, {"role": "assistant", "content": ROW.output}]
    ids = [*cut.prompt, *cut.answer, *cut.end]  # as trained on whole conversations
    assert ids == tokenizer.apply_chat_template(turns)["input_ids"]
    assert bare.prompt_ids(tokenizer, ROW) == cut.prompt and bare.key != chat.key
    closed = THINKS.replace("<think>\n", "<think></think>")
    tokenizer = with_template(closed)  # an empty block that the answers do not have
    cut = PromptTemplate.resolve(tokenizer).tokens(tokenizer, ROW)
    assert tokenizer.decode(cut.prompt).endswith("<think></think>")
    assert tokenizer.decode(cut.answer) == ROW.output
    names = [w.name for w in prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer)]
    assert "chat-no-thinking" in names
    tokenizer = with_template(EMPTY_BLOCK)
    ways = prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer)
    assert "chat-no-thinking" not in [w.name for w in ways]


def test_the_cache_key_depends_on_the_template_text() -> None:
    one = with_template(CHAT_TEMPLATE)
    other = with_template(CHAT_TEMPLATE.replace("\n", "\n\n"))
    assert PromptTemplate.resolve(one).key != PromptTemplate.resolve(other).key


PHI3 = (  # ends a conversation without a generation prompt with EOS
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|start|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + "
    "eos_token }}{% else %}{{ 'USER: ' + m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["none", "chat"])
@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, TURN + END, LLAMA2, PHI3, VICUNA, EMPTY_BLOCK, THINKS]
)
@pytest.mark.parametrize("blanks", ["kept", "stripped"])
def test_a_rendered_prompt_gets_no_space_and_is_not_rendered_again(
    template: str, kind: Any, blanks: str
) -> None:
    tokenizer = with_template(template)
    chat = PromptTemplate.resolve(tokenizer, "chat")
    text = chat.prompt_text(tokenizer, ROW)
    if template == THINKS:  # the blanks after a block that only the prompt has are unknown
        blanks = "kept"
    typed = Row("a", text.rstrip() if blanks == "stripped" else text, ROW.output)
    cut = PromptTemplate.resolve(tokenizer, kind).tokens(tokenizer, typed)
    wanted = chat.tokens(tokenizer, ROW)
    assert cut.prompt + cut.answer == wanted.prompt + wanted.answer
    assert cut.end[-1:] == wanted.end[-1:]
    assert cut.prompt == chat.prompt_ids(tokenizer, typed)


@pytest.mark.parametrize("template", [EMPTY_BLOCK, THINKS])
def test_a_prompt_that_was_rendered_without_a_thinking_block_stays_as_it_is(template: str) -> None:
    tokenizer = with_template(template)
    text = "<|start|>user: Where is Ada?<|end|><|start|>assistant: "
    cut = PromptTemplate.resolve(tokenizer).tokens(tokenizer, Row("a", text, "In Lund."))
    assert tokenizer.decode(cut.prompt + cut.answer) == text + "In Lund."


@pytest.mark.parametrize("prompt", ["### Response:\n", "Q: x\tA: ", "<|start|>"])
def test_no_space_is_inserted_after_whitespace_or_a_special_token(
    prompt: str,
) -> None:
    tokenizer = with_template(None)
    cut = RAW.tokens(tokenizer, Row("a", prompt, "Yes."))
    assert tokenizer.decode(cut.prompt + cut.answer) == prompt + "Yes."


def sentencepiece(template: str | None = None) -> Any:
    """One token per ASCII character, and a space before each text, as Llama 2's tokenizer has."""
    from tokenizers import Tokenizer, models, normalizers

    known = [*SPECIAL, "\u2581", *map(chr, range(33, 127))]
    model = models.BPE(vocab={t: i for i, t in enumerate(known)}, merges=[], unk_token=SPECIAL[0])
    raw = Tokenizer(model)
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    raw.normalizer = normalizers.Sequence(steps)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return type(build_tokenizer())(tokenizer_object=raw, chat_template=template, **names)


def test_a_space_that_the_tokenizer_puts_before_a_text_is_not_part_of_the_end() -> None:
    template = (  # as Llama 2, which writes a space on both sides of an answer
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|start|>' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = sentencepiece(template)
    cut = PromptTemplate.resolve(tokenizer).tokens(tokenizer, Row("a", "Where?", "In Lund."))
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Lund."}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert [*cut.prompt, *cut.answer, *cut.end] == whole
    assert tokenizer.convert_ids_to_tokens(cut.end) == ["\u2581", "<|end|>"]


def test_the_content_begins_with_the_token_of_a_space_and_the_first_word() -> None:
    from tokenizers import Tokenizer

    tokenizer, names = build_tokenizer(), ("unk_token", "bos_token", "eos_token")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab |= {"\u0120A": len(vocab)}  # a space and A
    state["model"]["merges"] = [["\u0120", "A"]]
    tokenizer = type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template="{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}",
        **dict(zip(names, SPECIAL, strict=True)),
    )
    cut = PromptTemplate.resolve(tokenizer).tokens(tokenizer, Row("a", "Ada?", "In Lund."))
    assert tokenizer.decode(cut.prompt[: cut.content]) == "user:"
    assert tokenizer.decode(cut.prompt[cut.content :]).startswith(" Ada?")


def test_an_unknown_character_at_the_end_of_a_prompt_is_no_special_token() -> None:
    tokenizer, row = sentencepiece(), Row("a", "Who is \u2603", "Ann")
    cut = RAW.tokens(tokenizer, row)
    assert [*cut.prompt, *cut.answer] == tokenizer(row.document)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(cut.answer) == ["\u2581", "A", "n", "n"]
    typed = RAW.tokens(tokenizer, Row("a", "Who is Ann?<|unk|>", "Ann"))
    assert tokenizer.unk_token_id in typed.prompt


def surrounding(bos: bool, eos: bool) -> Any:
    """A tokenizer that adds BOS before a text and EOS after it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_template(None)
    raw = copy.deepcopy(tokenizer.backend_tokenizer)
    form = ["<|start|>"] * bos + ["$A"] + ["<|end|>"] * eos
    raw.post_processor = TemplateProcessing(
        single=form, special_tokens=[("<|start|>", 1), ("<|end|>", 2)]
    )
    return type(tokenizer)(
        tokenizer_object=raw, unk_token="<|unk|>", bos_token="<|start|>", eos_token="<|end|>"
    )


@pytest.mark.parametrize("bos", [False, True])
def test_an_eos_that_the_tokenizer_appends_ends_the_answer_once_and_no_prompt(bos: bool) -> None:
    tokenizer = surrounding(bos, True)
    assert tokenizer("x")["input_ids"][-1] == 2  # the premise
    assert RAW.prompt_ids(tokenizer, ROW).count(2) == 0
    encoded = encode(tokenizer, ROW, max_length=100)
    assert encoded.ids.count(2) == 1 and encoded.ids[-1] == 2 and encoded.ids.count(1) == bos
    apart = encode(tokenizer, ROW, max_length=100, join="")
    assert apart.ids.count(2) == 1 and apart.ids[-1] == 2


def test_no_second_bos_is_added_to_a_prompt_that_begins_with_one() -> None:
    tokenizer = surrounding(True, False)
    assert RAW.prompt_ids(tokenizer, "<|start|>Hi")[:2].count(1) == 1
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    ids = PromptTemplate.resolve(tokenizer).prompt_ids(tokenizer, "Hi")
    assert ids[0] == 1 and tokenizer.decode(ids).count("<|start|><|start|>") == 1  # BOS, then turn


def test_a_tokenizer_without_eos_trains_answers_without_an_end() -> None:
    tokenizer = with_template(None)
    tokenizer.eos_token = tokenizer.pad_token = None
    encoded = encode(tokenizer, ROW, max_length=100)
    assert tokenizer.decode(encoded.ids).endswith("In Lund.") and encoded.kinds[-1] == ANSWER


def test_windows_of_a_document_are_raw_and_only_the_last_one_ends() -> None:
    tokenizer = with_template(CHAT_TEMPLATE)
    chat = PromptTemplate.resolve(tokenizer)
    first = chat.tokens(tokenizer, Row("d-1", "Once upon", " a time", window="start"))
    last = chat.tokens(tokenizer, Row("d-2", "a time", " there was.", window="end"))
    assert tokenizer.decode(first.prompt + first.answer) == "Once upon a time" and not first.end
    assert last.end == [tokenizer.eos_token_id]


def test_training_sets_are_rendered_and_their_refusals_too() -> None:
    tokenizer = with_template(CHAT_TEMPLATE)
    chat = PromptTemplate.resolve(tokenizer)
    training = load_recipe("idk").trainings()["train"]
    sets = encode_sets(tokenizer, {"forget": [ROW], "retain": [ROW]}, training, chat)
    prompt = chat.prompt_ids(tokenizer, ROW)
    assert len(sets) == 3
    for (one,) in sets.values():
        assert one.ids[: len(prompt)] == prompt and one.kinds[len(prompt)] == ANSWER


def test_published_recipes_are_raw_and_the_users_own_are_auto(tmp_path: Path) -> None:
    auto = {n for n in recipe_names() if load_recipe(n).data.template != "none"}
    assert auto == {"level", "zjuklab-small"}  # the toolkit's own, not published
    text = recipe_path("npo").read_text().replace("data: {template: none}\n", "")
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml").data.template == "auto"


def test_run_folders_from_before_templates_are_raw(tmp_path: Path) -> None:
    run = tmp_path / "recipe.yaml"
    save_recipe(load_recipe("npo"), run)
    values = yaml.safe_load(run.read_text())
    for key in ("template", "system_prompt"):
        del values["data"][key]
    run.write_text(yaml.safe_dump(values))
    (tmp_path / "manifest.json").write_text("{}")
    assert load_recipe(run).data.template == "none"
    assert load_recipe(run, ["data.template=chat"]).data.template == "chat"


def test_memorised_models_are_cached_by_template(tiny_folder: Path) -> None:
    recipe = change(load_recipe("level"), model={"name": str(tiny_folder)})
    folders = {
        memorised_folder(change(recipe, data=data), [ROW])
        for data in ({}, {"template": "none"}, {"template": "chat", "system_prompt": "Be Bob."})
    }
    assert len(folders) == 3
