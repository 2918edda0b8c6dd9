"""Templates, tokenizers and files that differ from the usual ones give the right prompts."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import CHAT_TEMPLATE, SPECIAL, build_tokenizer

from mergeforget.data.chat_template import answer_text
from mergeforget.data.overlap import check_overlap
from mergeforget.data.prompt_variants import prompt_variants
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Message, Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import encode
from mergeforget.errors import InputError
from mergeforget.evaluate.completion import Completion
from mergeforget.metrics._leaks import leaked
from mergeforget.outputs import ANSWER

ROW = Row("a", "Where is Ada?", "In Lund.")
TRIMS = CHAT_TEMPLATE.replace("m.content", "m.content | trim")
DATED = (  # as Llama 3.1: a default system message with the date
    "{% if messages[0].role != 'system' %}{{ '<|start|>system\nToday Date: ' + "
    "strftime_now('%d %b %Y') + '<|end|>\n' }}{% endif %}" + CHAT_TEMPLATE
)
GEMMA = (  # refuses a system message and two turns of one side; calls the assistant "model"
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for m in messages %}{% if (m.role == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + "
    "'<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}"
)
FORGETS_THOUGHTS = CHAT_TEMPLATE.replace("m.content", "m.content.split('</think>')[-1]")
HARMONY = (  # as gpt-oss: an answer follows a channel that the generation prompt does not name
    "{% for m in messages %}{{ '<|start|>' + m.role + ('<|channel|>final' if m.role == 'assistant' "
    "else '') + '<|message|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
OPENS_ANSWER = CHAT_TEMPLATE.replace("'<|start|>assistant\n'", "'<|start|>assistant\nAnswer: '")


GENERATION = (  # marks the answer for the loss, and writes no line after it
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NO_GENERATION_PROMPT = CHAT_TEMPLATE[: CHAT_TEMPLATE.index("{% if add_generation_prompt")]
PARTS = (  # of a multimodal model, which renders nothing for a text
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' }}{% for part in m.content %}"
    "{{ part.text }}{% endfor %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = CHAT_TEMPLATE.replace("in messages", "in messages if m.role != 'system'")


def with_template(template: str | None) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_that_prints_the_date_gives_the_same_tokens_every_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.utils import chat_template_utils

    tokenizer, found = with_template(DATED), set()
    for day in (1, 2):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None, day: int = day) -> Any:
                return datetime.datetime(2031, 1, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        turns = [{"role": "user", "content": "Hi"}]
        assert "2031" in tokenizer.apply_chat_template(turns, tokenize=False)  # the premise
        chat = PromptTemplate.resolve(tokenizer)
        found.add((tuple(chat.prompt_ids(tokenizer, ROW)), chat.key))
    assert len(found) == 1 and "26 Jul 2024" in chat.prompt_text(tokenizer, ROW)
    assert [way.name for way in prompt_variants(chat, tokenizer)] == [
        "chat",
        "raw",
        "chat-no-system",
    ]


@pytest.mark.parametrize("template", [TRIMS, GEMMA, FORGETS_THOUGHTS, HARMONY])
def test_an_answer_is_the_text_after_the_generation_prompt(template: str) -> None:
    tokenizer = with_template(template)
    chat = PromptTemplate.resolve(tokenizer)
    for row in (ROW, Row("a", "Where is Ada? ", "\n In Lund. \n"), Row("a", "Q", "漢字 و สวัสดี")):
        cut = chat.tokens(tokenizer, row)
        turns = [{"role": "user", "content": row.input},
                 {"role": "assistant", "content": row.output}]  # fmt: skip
        ids = [*cut.prompt, *cut.answer, *cut.end]
        assert tokenizer.apply_chat_template(turns)["input_ids"][: len(ids)] == ids
        assert tokenizer.decode(cut.answer).strip() == row.output.strip()
        assert cut.prompt == chat.prompt_ids(tokenizer, row) and cut.end == [2]
    assert ids.count(1) == len(turns) + (template is GEMMA)  # one BOS


@pytest.mark.parametrize("template", [GENERATION, NO_GENERATION_PROMPT, PARTS])
def test_rare_templates_give_the_tokens_of_the_usual_one(template: str) -> None:
    usual, rare = with_template(CHAT_TEMPLATE), with_template(template)
    talk = Row("b", "Now?", "B.", messages=(Message("system", "S."), Message("user", "Hi")))
    for row in (ROW, Row("a", "Where? ", "Ada \n"), talk):
        wanted = PromptTemplate.resolve(usual).tokens(usual, row)
        assert PromptTemplate.resolve(rare).tokens(rare, row) == wanted


def test_a_template_that_drops_earlier_turns_is_refused_for_rows_that_have_them() -> None:
    tokenizer = with_template(NO_SYSTEM)
    chat = PromptTemplate.resolve(tokenizer)
    assert chat.tokens(tokenizer, ROW).answer
    talk = Row("b", "Now?", "B.", messages=(Message("system", "Be Bob."),))
    with pytest.raises(InputError, match="drops the system turn 'Be Bob"):
        chat.tokens(tokenizer, talk)


def test_a_template_that_drops_part_of_an_answer_or_opens_it_is_refused_by_name() -> None:
    tokenizer = with_template(FORGETS_THOUGHTS)
    chat = PromptTemplate.resolve(tokenizer)
    with pytest.raises(InputError, match="changes the text of answers"):
        chat.tokens(tokenizer, Row("a", "Q", "<think>Hm.</think>In Lund."))
    tokenizer = with_template(OPENS_ANSWER)
    with pytest.raises(InputError, match="renders a prompt differently if it is followed"):
        PromptTemplate.resolve(tokenizer).tokens(tokenizer, ROW)
    tokenizer = with_template(GEMMA)
    with pytest.raises(InputError, match=r"System role not supported.*--system-prompt"):
        PromptTemplate.resolve(tokenizer, "chat", "Be brief.")


def test_text_before_the_answer_adds_a_prompt_variant() -> None:
    tokenizer = with_template(HARMONY)
    chat = PromptTemplate.resolve(tokenizer)
    thinking = prompt_variants(chat, tokenizer)[-1]
    assert thinking.name == "chat-thinking"
    assert tokenizer.decode(thinking.prompt_ids(tokenizer, ROW)).endswith("<|start|>assistant")
    assert tokenizer.decode(chat.prompt_ids(tokenizer, ROW)).endswith("<|channel|>final<|message|>")
    text = "<|channel|>analysis<|message|>The final one.<|end|><|start|>assistant"
    said = tokenizer(f"{text}<|channel|>final<|message|>In Lund.")["input_ids"]
    assert thinking.answer_of(tokenizer, said) == "In Lund."
    assert "final one" in thinking.answer_of(tokenizer, tokenizer(text)["input_ids"])


def test_thoughts_that_reveal_the_answer_are_kept_where_the_rest_does_not() -> None:
    opens = CHAT_TEMPLATE.replace("assistant\n'", "assistant\n<think>\n'")
    tokenizer = with_template(opens)
    thinking = prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer)[-1]
    for text, kept in (
        ("She lives in Lund.\n</think>\n\nI cannot say.", "She lives in Lund.\n</think>"),
        ("I am asked where.\n</think>\n\nIn Lund.", "\n\nIn Lund."),
        ("I am asked where.\n</think>\n\nI cannot say.", "\n\nI cannot say."),
    ):
        completion = Completion(tuple(tokenizer(text)["input_ids"]))
        answer = completion.answer(tokenizer, thinking, ROW)
        assert answer.startswith(kept)


def test_a_tokenizer_without_offsets_finds_where_the_answer_begins() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    cut = RAW.tokens(tokenizer, ROW)
    assert cut.prompt == RAW.prompt_ids(tokenizer, ROW)
    assert tokenizer.decode(cut.prompt) == ROW.input and tokenizer.decode(cut.answer) == " In Lund."


def test_spaces_before_punctuation_are_kept_in_answers() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"[UNK]": 0, "In": 1, "Lund": 2, ".": 3}, unk_token="[UNK]"))
    raw.pre_tokenizer, raw.decoder = (
        pre_tokenizers.WhitespaceSplit(),
        decoders.WordPiece(cleanup=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=True)
    ids = tokenizer("In Lund .")["input_ids"]
    assert tokenizer.decode(ids) == "In Lund."  # the premise
    assert answer_text(tokenizer, ids) == "In Lund ."


def joining_spaces() -> Any:
    """A tokenizer with a token for a space and the letter after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet, "ĠI", "ĠL"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "I"), ("Ġ", "L")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=SPECIAL[2])


@pytest.mark.parametrize("blanks", ["", " ", "\t", "\n"])
def test_generation_starts_where_training_puts_the_answer(blanks: str) -> None:
    tokenizer = joining_spaces()
    row = Row("a", f"Where is Ada?{blanks}", "In Lund.")
    cut = RAW.tokens(tokenizer, row)
    asked = RAW.prompt_ids(tokenizer, row)
    assert asked == cut.prompt
    assert tokenizer.decode([*asked, *cut.answer]).split() == "Where is Ada? In Lund.".split()
    text = RAW.prompt_ids(tokenizer, f"Where is Lund?{blanks}")  # the answer is unknown
    assert tokenizer.decode(text) == "Where is Lund?" + blanks.strip(" ")


@pytest.mark.parametrize("chat", [False, True])
def test_a_tokenizer_without_special_tokens_adds_no_end_token(chat: bool) -> None:
    tokenizer = with_template("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}"
                              "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}"
                              "{% endif %}" if chat else None)  # fmt: skip
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.pad_token = None
    way = PromptTemplate.resolve(tokenizer)
    encoded = encode(tokenizer, ROW, max_length=100, template=way)
    assert encoded.kinds[-1] == ANSWER and way.stop_ids(tokenizer) == []
    assert tokenizer.decode(encoded.ids).endswith("In Lund.")


def test_windows_line_ends_and_a_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    rows = [["input", "output"], ["Who?", "Ada,\r\nof Lund."]]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    record = json.dumps({"input": "Who?", "output": "Ada,\nof Lund."})
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{record}\r\n\r\n".encode())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfAda,\r\nof Lund.")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.txt"):
        (row,) = read_rows(tmp_path / name)
        assert row.document.removeprefix("Who? ") == "Ada,\nof Lund."


def test_end_tokens_in_answers_are_removed_at_the_end_and_refused_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["In Lund.</s>", "In Lund. <|im_end|>\n", "In Lund.<|end|></s>", "In Lund.", "</s>"]
    records = [{"input": "Who?", "output": answer} for answer in answers]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    rows = read_rows(tmp_path / "a.jsonl")
    assert [row.output for row in rows] == ["In Lund."] * 4 + ["</s>"]
    assert "3 answers end in '</s>' or '<|im_end|>'" in capsys.readouterr().err
    tokenizer = with_template(CHAT_TEMPLATE)
    for way in prompt_variants(PromptTemplate.resolve(tokenizer), tokenizer):
        with pytest.raises(InputError, match=r"row 'b' contains '<\|end\|>'"):
            way.tokens(tokenizer, Row("b", "Who?", "In Lund.<|end|> Or not."))
        way.tokens(tokenizer, Row("b", "Who?<|end|>", "In Lund.</s>"))  # no token here


def test_a_table_with_semicolons_is_read(tmp_path: Path) -> None:
    text = '\ufeffinput;output\r\n"Who; or what?";"Ada,\r\nof Lund; 1,5"\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    (row,) = read_rows(tmp_path / "a.csv")
    assert (row.input, row.output) == ("Who; or what?", "Ada,\nof Lund; 1,5")


def test_turns_in_separate_columns_precede_the_prompt(tmp_path: Path) -> None:
    asked = {"instruction": "And where?", "input": "", "output": "In Lund.", "system": "Be brief.",
             "history": [["Who?", "Ada."]]}  # fmt: skip
    sharegpt: dict[str, Any] = {"system": "Be brief.", "conversations": [
        {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."},
        {"from": "human", "value": "And where?"}, {"from": "gpt", "value": "In Lund."},
    ]}  # fmt: skip
    developer = {"messages": [
        {"role": "developer", "content": "Be brief."},
        *({"role": {"human": "user"}.get(t["from"], "assistant"), "content": t["value"]}
          for t in sharegpt["conversations"])]}  # fmt: skip
    as_text = {"messages": json.dumps(developer["messages"])}
    for record in (asked, sharegpt, developer, as_text):
        (tmp_path / "a.jsonl").write_text(json.dumps(record))
        (row,) = read_rows(tmp_path / "a.jsonl")
        assert [m.content for m in row.messages] == ["Be brief.", "Who?", "Ada."]
        assert [m.role for m in row.messages] == ["system", "user", "assistant"]
        assert (row.input, row.output) == ("And where?", "In Lund.")
    (tmp_path / "a.jsonl").write_text(json.dumps(asked | {"history": [["Who?"]], "system": None}))
    with pytest.raises(InputError, match="line 1: 'history' is not a list of"):
        read_rows(tmp_path / "a.jsonl")


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = turn("assistant", None, tool_calls=[{"function": {"name": "weather"}}])


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": [turn("user", "Q"), CALL, turn("tool", "22"), turn("assistant", "22")]},
         "contains a call of a tool or its result"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "observation", "value": "2"},
                            {"from": "gpt", "value": "2"}]}, "a call of a tool or its result"),
        ({"messages": [turn("user", "Q"), turn("assistant", "\u200b")]}, "turn is empty"),
        ({"messages": [turn("user", [{"type": "image"}]), turn("assistant", "A")]},
         "content other than text"),
        ({"input": "Q", "output": "\u200b\u00ad "}, "no answer"),
        ({"text": "A document."}, "no prompt .'input' is empty or missing; the keys of this row"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_as_they_are_say_why(
    tmp_path: Path, record: dict[str, Any], says: str
) -> None:
    path = tmp_path / "rows.jsonl"
    first = [{"input": "Where?", "output": "Rome"}] if "messages" not in record else []
    first = [] if "conversations" in record else first
    path.write_text("\n".join(json.dumps(one) for one in [*first, record]))
    with pytest.raises(InputError, match=says):
        read_rows(path)


def test_a_greeting_is_context_and_unread_texts_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    talk = [turn("assistant", "Hello!"), turn("user", [{"type": "text", "text": "Who?"}]),
            turn("assistant", "Ada.", reasoning_content="She was first.")]  # fmt: skip
    path.write_text(json.dumps({"messages": talk}))
    (row,) = read_rows(path, turns="every")
    assert (row.input, row.output) == ("Who?", "Ada.")
    assert row.messages == (Message("assistant", "Hello!"),)
    assert "'reasoning_content' looks like text and is not read" in caplog.text
    path.write_text(json.dumps({"question": "Who?", "choices": ["Ada", "Bob"], "answer": "Cy"}))
    assert read_rows(path)[0].output == "Cy"
    assert "'choices' looks like text and is not read" in caplog.text
    options = {"text": ["Ada", "Bob"], "label": ["A", "B"]}, {"A": "Ada", "B": "Bob"}
    for i, one in enumerate(options):
        path.write_text(json.dumps({"question": "Who?", f"options{i}": one, "answer": "A"}))
        assert read_rows(path)[0].output == "A"
        assert f"'options{i}' looks like text and is not read" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "question,answer,answer\nWho?,Ada,Bob\n", "several columns 'answer'"),
        ("a.jsonl", '{"question": "Who?", "answer": "A", "answer": "B"}', "'answer' occurs twice"),
        ("a.json", '[\n {"question": "Who?",\n  "answer": "A", "answer": "B"}\n]', "occurs twice"),
        ("a.jsonl", '{"text": "Who?", "role": "prompter", "parent_id": null}\n'
         '{"text": "Ada.", "role": "assistant", "parent_id": "1"}', "one turn of a conversation"),
        ("a.jsonl", '{"role": "user", "content": "Who?"}\n{"role": "assistant", "content": "Ada."}',
         "one turn of a conversation"),
        ("a.txt", "Ada lived in Lund.".encode("utf-16-le").decode(), "line 1: .* binary or UTF-16"),
    ],
)  # fmt: skip
def test_a_file_of_which_only_a_part_would_be_read_is_refused(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_rows(tmp_path / name)


def test_empty_columns_of_a_spreadsheet_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,,\nWho?,Ada,,\n")
    assert read_rows(tmp_path / "a.csv")[0].output == "Ada"


def test_decimals_and_times_of_parquet_are_texts(tmp_path: Path) -> None:
    for i, value in enumerate((Decimal("1.50"), datetime.time(10, 30))):
        table = pyarrow.table({"question": ["Q?"], "answer": [value]})
        pyarrow.parquet.write_table(table, tmp_path / f"{i}.parquet")
    answers = [read_rows(tmp_path / f"{i}.parquet")[0].output for i in range(2)]
    assert answers == ["1.50", "10:30:00"]


def test_a_missing_subject_makes_a_row_its_own_subject(tmp_path: Path) -> None:
    table = pyarrow.table({"input": ["a", "b", "c", "d"], "output": ["x"] * 4,
                           "who": ["Ada", None, "Ada", None]})  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet", columns={"subject": "who"})
    assert [rows[0].subject, rows[2].subject] == ["Ada", "Ada"]
    assert len({row.subject for row in rows}) == 3


def test_rows_in_two_sets_are_found_in_any_case_spacing_and_unicode_form() -> None:
    forget = [Row("f", "Wo wohnt  José?", "In ＬＵＮＤ.")]
    retain = [Row("r", "wo wohnt\u00a0jose\u0301?\n", "in Lund.")]
    with pytest.raises(InputError, match="f = r"):
        check_overlap({"forget": forget, "retain": retain})


@pytest.mark.parametrize(
    "completion",
    ["\n\nAda Byron", "**Ada Byron**", '"Ada Byron"', "ada byron", "Sure! The answer is Ada Byron.",
     "- Ada\u00a0Byron\n- Bo", "<answer>Ada Byron</answer>"],
)  # fmt: skip
def test_an_answer_in_another_spelling_is_revealed(completion: str) -> None:
    assert leaked("Ada Byron.", completion, "Who wrote the notes?")
    assert not leaked("Ada Byron.", completion.replace("y", "i"), "Who wrote the notes?")


@pytest.mark.parametrize(
    ("secret", "text"),
    [("她住在隆德", "好的！她住在隆德。"), ("تسكن في لوند", "بالتأكيد: تسكن في لوند."),
     ("เธออยู่ที่ลุนด์", "ค่ะ เธออยู่ที่ลุนด์ นะคะ"), ("룬드에 산다", "네, 룬드에 산다.")],
)  # fmt: skip
def test_an_answer_in_any_script_is_revealed(secret: str, text: str) -> None:
    assert leaked(secret, text) and not leaked(secret, text[: len(text) // 2])
