"""The rows of a request to unlearn: texts, tables and rows in memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from unlearning import answers

from mergeforget.api.earlier import earlier_rows
from mergeforget.api.unlearn_data import RequestReader, read_request
from mergeforget.api.unlearn_request import facts_of
from mergeforget.data.schema import Row
from mergeforget.errors import InputError
from mergeforget.files import write_json, write_jsonl
from mergeforget.run import Run


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


def test_a_request_without_retain_rows_retains_the_models_own_answers() -> None:
    found = read_request([{"input": "Who is Ann Lee?", "output": "A baker"}], None, None, answers)
    assert found.retain[-1].output == "answer to Who is Albert Einstein?"
    (note,) = found.notes
    assert note.startswith("No retain set: the model's own answers to 25")
