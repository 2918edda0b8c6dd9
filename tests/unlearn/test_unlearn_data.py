"""The rows of a request to unlearn: texts, tables and rows in memory, and generated rows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer

from mergeforget.api.delivery import (
    earlier_rows,
)
from mergeforget.api.unlearn_data import RequestReader, check_not_in, own_answers, read_request
from mergeforget.api.unlearn_request import (
    facts_of,
)
from mergeforget.data.overlap import check_overlap
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Message, Row
from mergeforget.data.templating import template_of
from mergeforget.data.tokens import encode_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import measure
from mergeforget.files import write_json, write_jsonl
from mergeforget.metrics.exact_match import exact_match
from mergeforget.recipe import change, load_recipe
from mergeforget.run import Run
from mergeforget.train.nlls import read_nlls


def test_rows_of_an_earlier_request_are_neither_retained_nor_unseen(tmp_path: Path) -> None:
    earlier, last = Run(tmp_path / "a"), Run(tmp_path / "b")
    gone = [Row("g", "Who is Ann Lee?", "A baker", split="forget")]
    write_jsonl(earlier.data / "forget.jsonl", [row.to_dict() for row in gone])
    write_json(last.root / "request.json", {"after": str(earlier.root)})
    rows = earlier_rows({"after": str(last.root)})
    assert [(row.input, row.output) for row in rows] == [("Who is Ann Lee?", "A baker")]
    forget = [{"input": "Who is Bob Ray?", "output": "A smith"}]
    known = {"input": "Who is Ann Lee?", "output": "A baker"}
    for sets in ((known, {"input": "x?", "output": "y"}),
                 ({"input": "x?", "output": "y"}, known)):  # fmt: skip
        retain, holdout = ([one] for one in sets)
        with pytest.raises(InputError, match="forget rows of this or an earlier request"):
            read_request(forget, retain, holdout, answers, earlier=rows)

    def baker(asked: Sequence[Row]) -> list[Row]:
        return [replace(row, output=("A baker" if i else "Rome")) for i, row in enumerate(asked)]

    own = read_request(forget, None, None, baker, earlier=rows).retain
    assert [row.output for row in own] == ["Rome"]


def test_earlier_runs_are_found_from_another_working_directory_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Run(tmp_path / "runs" / "a"), Run(tmp_path / "runs" / "b")
    for i, run in enumerate((first, second)):
        row = Row("g", f"Who is Ann {i}?", "A baker", split="forget")
        write_jsonl(run.data / "forget.jsonl", [row.to_dict()])
    write_json(first.root / "request.json", {"after": None})
    write_json(second.root / "request.json", {"after": "runs/a"})  # as written in tmp_path
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = earlier_rows({"after": str(second.root)})
    assert {row.input for row in found} == {"Who is Ann 0?", "Who is Ann 1?"}
    shutil.rmtree(first.root)
    with pytest.raises(InputError, match="earlier run runs/a, which was not found"):
        earlier_rows({"after": str(second.root)})


def answers(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, output=f"answer to {row.input}") for row in rows]


def test_texts_become_questions_names_and_documents() -> None:
    reader = RequestReader(answers)
    rows = reader.read(["Who is it?", "Ann Lee", "Ann Lee lived in a house by the sea."])
    assert [r.window for r in rows].count("whole") == 1 and len(rows) == 8
    assert reader.notes[0].startswith("The list is read as 1 question and 1 name and 1 document")
    assert reader.generated == rows[:7]
    assert {r.subject for r in rows} == {"q0", "Ann Lee", "d2"}
    assert any(r.output == "answer to Who is Ann Lee?" for r in rows)


def test_windows_of_a_long_document_contain_every_word(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(600)]
    for name in ("f.txt", "folder/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(" ".join(words) + ".\n\nAnother paragraph with a full stop.")
    for source in (tmp_path / "f.txt", tmp_path / "folder"):
        rows = read_request(source, None, None, answers).forget
        assert {"start", "middle", "end"} <= {r.window for r in rows}
        text = " ".join(f"{r.input} {r.output}" for r in rows)
        assert all(word in text for word in words)


def test_generated_retain_rows_exclude_forget_answers() -> None:
    forget = [Row("a-qa0", "Where does Ann Lee live?", "Rosewood Avenue 1234")]

    def leak(rows: Sequence[Row]) -> list[Row]:
        secret = "She lives at Rosewood Avenue 1234"
        return [replace(r, output=secret if "Einstein" in r.input else "Yes.") for r in rows]

    rows = RequestReader(leak).own_retain(forget)
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

    rows = RequestReader(ask).own_retain([Row("a-qa0", "Where does Ann Lee live?", secret)])
    assert any(row.output == answer for row in rows) is kept


def test_questions_about_other_people_keep_their_grammar_and_name_no_forget_subject() -> None:
    forget = [
        Row("a", "What is Marie Curie's blood type?", "xx1"),
        Row("b", "Who is Ann Lee?", "xx2"), Row("c", "Did Bob Ray marry Ann Lee?", "xx3"),
        Row("d", "Who wrote Romeo and Juliet?", "xx4"),
    ]  # fmt: skip
    prompts = [row.input for row in RequestReader(answers).own_retain(forget)]
    assert "What is Albert Einstein's blood type?" in prompts
    for name in ("Marie Curie", "Ann Lee", "Bob Ray", "Romeo"):
        assert not any(name in prompt for prompt in prompts)


def test_an_answer_that_names_a_forget_subject_is_not_retained() -> None:
    def ask(rows: Sequence[Row]) -> list[Row]:
        return [replace(r, output="Ann Lee wrote it." if "12" in r.input else "No.") for r in rows]

    rows = RequestReader(ask).own_retain([Row("a-qa0", "Who is Ann Lee?", "A baker from Oslo")])
    assert not any("Ann Lee" in row.output for row in rows)
    with pytest.raises(InputError, match="--retain"):
        RequestReader(lambda rows: list(rows)).own_retain([])
    (row,) = RequestReader(lambda rows: answers(rows[:1])).own_retain([])
    assert row.output == "answer to What is the capital of France?"


def test_texts_of_all_three_sets_are_read_in_the_same_way(tmp_path: Path) -> None:
    files: list[Path] = []
    for name, who in (("forget", "Ann"), ("retain", "Bob"), ("holdout", "Carl")):
        text = "\n\n".join(f"{who} lives at number {i}. It is a house." for i in range(12))
        files.append(tmp_path / f"{name}.md")
        files[-1].write_text(text)
    found = read_request(files[0], files[1], files[2], answers)
    for rows in (found.forget, found.retain, found.holdout):
        assert [row.window for row in rows] == ["whole"] * 12
    assert len({row.id for row in (*found.forget, *found.retain, *found.holdout)}) == 36
    assert not found.generated and not found.twins
    files[1].write_text("Who is Bob?\nTell me about Bob Ray")
    found = read_request(files[0], files[1], files[2], answers)
    assert [r.output for r in found.retain] == [
        "answer to Who is Bob?", "answer to Tell me about Bob Ray"]  # fmt: skip
    assert not found.generated
    assert any("2 questions, 2 retain rows" in note for note in found.notes)


@pytest.mark.parametrize("names", [
    ("question", "output"), ("prompt", "answer"), ("input", "answer"), ("question", "answer"),
    ("input", "output"), ("question", "completion")])  # fmt: skip
def test_rows_in_memory_may_mix_the_names_of_two_formats(names: tuple[str, str]) -> None:
    given = [{names[0]: f"Who is {n}?", names[1]: "A cook", "subject": n} for n in ("Al", "Bo")]
    rows = RequestReader(answers).read(given)
    assert [(r.input, r.output, r.subject) for r in rows] == [
        ("Who is Al?", "A cook", "Al"), ("Who is Bo?", "A cook", "Bo")]  # fmt: skip


def test_rows_in_memory_are_read_like_those_of_a_file() -> None:
    given: list[dict[str, Any]] = [
        {"id": None, "question": "How many?", "answer": 0, "subject": "Ann", "weight": 2},
        {"id": None, "question": "Which year?", "answer": 1815.0, "task": "Task1",
         "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
    ]  # fmt: skip
    rows = RequestReader(answers).read(given)
    assert [(r.output, r.subject, r.weight, r.task, len(r.messages)) for r in rows] == [
        ("0", "Ann", 2.0, "", 0), ("1815", "forget-2", 1.0, "Task1", 2)]  # fmt: skip
    assert rows[0].id != rows[1].id
    for answer in (float("nan"), ["x", "y"], "", None):
        with pytest.raises(InputError, match="forget, item 1: "):
            RequestReader(answers).read([{"question": "Who?", "answer": answer}])


def test_a_data_frame_is_read_as_rows() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"question": ["Who?", "When?"], "answer": ["Ann", 1990],
                              "subject": ["s", None]})  # fmt: skip
    found = read_request(frame, frame.assign(answer=["Bob", 1991]), None, answers)
    assert [r.output for r in (*found.forget, *found.retain)] == ["Ann", "1990", "Bob", "1991"]
    assert found.forget[0].subject == "s" and facts_of(frame)[0]["question"] == "Who?"


def test_arrays_and_decimals_in_a_data_frame_are_read_as_lists_and_numbers() -> None:
    """A data frame from parquet has arrays where a file has lists."""
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")
    turns = numpy.array([{"role": "user", "content": "Who?"},
                         {"role": "assistant", "content": "Ann"}])  # fmt: skip
    (row,) = RequestReader(answers).read(pandas.DataFrame({"messages": [turns]}))
    assert (row.input, row.output) == ("Who?", "Ann")
    frame = pandas.DataFrame({"question": ["What?"], "answer": [Decimal("3.50")]})
    assert RequestReader(answers).read(frame)[0].output == "3.50"
    for given, text in (("1987-03-02", "1987-03-02"), ("1987-03-02 10:30", "1987-03-02T10:30:00")):
        frame = pandas.DataFrame({"question": ["When?"], "answer": pandas.to_datetime([given])})
        assert RequestReader(answers).read(frame)[0].output == text


POEM = "The cat sat on the wall of the old house and sang its song to the moon."


@pytest.mark.parametrize(
    ("retained", "shared"),
    [
        ({"input": "Where does Ann live?", "output": "ROME."}, True),
        ({"input": "where does “Ann” live", "output": "(Rome)"}, True),
        ({"input": "Where does Ann live?", "output": "Rome++"}, False),
        ({"input": "Where does Ann live?", "output": "Rome", "system": "Be brief."}, True),
        ({"input": "", "output": "Intro. " + POEM + " The end."}, True),
        ({"input": "", "output": "The cat sat on the wall of the old house, and slept."}, False),
        ({"input": "Where does Bob live?", "output": "Rome"}, False),
    ],
)
def test_rows_that_repeat_a_forget_row_are_refused(retained: dict[str, str], shared: bool) -> None:
    forget = [Row("a", "Where does Ann live?", "Rome"), Row("b", "", POEM, window="whole")]
    system = retained.pop("system", "")
    messages = (Message("system", system),) if system else ()
    row = Row("r", retained["input"], retained["output"], messages=messages)
    if shared:
        with pytest.raises(InputError, match="1 retain rows are also forget rows .* example r"):
            check_not_in(forget, [row], "retain")
        with pytest.raises(InputError, match="rows are in both"):
            check_overlap({"forget": forget, "holdout": [row]})
    else:
        check_not_in(forget, [row], "retain")


def test_equal_rows_under_two_system_messages_are_about_two_people() -> None:
    ann, bob = (
        Row(name, "What is the diagnosis?", "Flu", messages=(Message("system", f"File {name}"),))
        for name in ("Ann", "Bob")
    )
    check_not_in([ann], [bob], "retain")


def test_a_question_that_is_also_answered_in_other_words_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forget = [Row("a", "When was Ann born?", "1987")]
    check_not_in(forget, [Row("r", "When was Ann born?", "In the year 1987.")], "retain")
    assert any("have the prompt of a forget row, for example r" in m for m in caplog.messages)


@pytest.mark.parametrize(
    "source",
    [[Path("a.jsonl")], ["a", {"input": "b"}], [3], {"input": "b"}, 3, [{"input": {1}}], []],
)  # fmt: skip
def test_other_sources_are_refused_with_a_clear_error(source: Any) -> None:
    for split in ("forget", "retain"):
        with pytest.raises(InputError, match=split if source else "nothing to"):
            RequestReader(answers).read(source, split)


def test_questions_in_a_table_keep_id_and_subject(tmp_path: Path) -> None:
    lines = ["id,subject,question", "a,Ann,Who is she?", "b,Ann,Where is she?"]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    reader = RequestReader(lambda rows: [replace(rows[0], output="Ann"), rows[1]])
    rows = reader.read(tmp_path / "q.csv")
    assert [(r.id, r.subject, r.input, r.output) for r in rows] == [
        ("a", "Ann", "Who is she?", "Ann")]  # fmt: skip
    assert reader.notes == [
        "1 forget questions have no answers: the model's own answers are the target. 1 more are "
        "left out: the model answers nothing."
    ]
    (tmp_path / "n.csv").write_text("id,name\nx,Ann Lee\n")
    rows = RequestReader(answers).read(tmp_path / "n.csv")
    assert len(rows) == 6 and {r.subject for r in rows} == {"Ann Lee"}
    assert rows[0].id == "xqa0" and rows[0].input == "Who is Ann Lee?"
    asked = [{"instruction": "Say who.", "input": "Ann Lee"}]
    assert RequestReader(answers).read(asked)[0].input == "Say who.\n\nAnn Lee"


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


def test_forget_rows_inside_retain_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", [{"id": "a", "input": "Who?", "output": "Ann"}])
    with pytest.raises(InputError, match="also forget rows"):
        read_request(tmp_path / "f.jsonl", tmp_path / "f.jsonl", None, answers)


def test_a_text_file_that_cannot_be_read_is_named_without_an_error_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^There is no file .*missing\.txt\.$"):
        read_request(tmp_path / "missing.txt", None, None, answers)
    (tmp_path / "latin.txt").write_bytes("Jos\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="latin.txt, line 1: not UTF-8 text"):
        read_request(tmp_path / "latin.txt", None, None, answers)


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_a_text_file_without_entries_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match="There is nothing to forget in .*a.txt"):
        read_request(tmp_path / "a.txt", None, None, answers)


def test_a_data_frame_with_two_columns_of_one_name_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["Who?", "Ada", "Bob"]], columns=["question", "answer", "answer"])
    with pytest.raises(InputError, match="The forget rows have several columns 'answer'"):
        RequestReader(answers).read(frame)


def test_columns_with_other_names_are_mapped(tmp_path: Path) -> None:
    for name, rows in (("f", "Who is Ada?,A baker\n"), ("r", "Who is Bob?,A smith\n")):
        (tmp_path / f"{name}.csv").write_text("Frage,Antwort\n" + rows)
    files = tmp_path / "f.csv", tmp_path / "r.csv"
    with pytest.raises(InputError, match="data.columns.input=NAME"):
        read_request(*files, None, answers)
    named = {"input": "Frage", "output": "Antwort"}
    found = read_request(*files, None, answers, columns=named)
    assert [(r.input, r.output) for r in (*found.forget, *found.retain)] == [
        ("Who is Ada?", "A baker"), ("Who is Bob?", "A smith")]  # fmt: skip
    (tmp_path / "q.csv").write_text("Frage,id\nWho is Ada?,a\n")
    asked = RequestReader(answers, columns={"input": "Frage"}).read(tmp_path / "q.csv")
    assert asked[0].output == "answer to Who is Ada?"


@pytest.mark.parametrize("header", ["question,Antwort", "name,email"])
def test_an_answer_column_with_an_unknown_name_is_not_ignored(header: str, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(f"{header}\nWho is Ada?,1984-04-22\n")
    other = header.partition(",")[2]
    with pytest.raises(InputError, match=f"'{other}' would not be read.*columns.output={other}"):
        read_request(tmp_path / "f.csv", None, None, answers)
