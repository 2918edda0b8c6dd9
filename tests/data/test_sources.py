"""Which rows a folder, a text file or a list means; other readings are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergeforget.api.data import make_data
from mergeforget.api.unlearn_data import RequestReader, read_request, turns_of
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.sources.text_entries import entries_of, kind_of_text
from mergeforget.errors import InputError
from mergeforget.evaluate.rows import rows_of_files
from mergeforget.files import write_jsonl
from mergeforget.recipe import load_recipe
from mergeforget.recipe_sections import DataSpec, EvaluationSpec
from mergeforget.train.run_rows import read_data


def own(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, output="own") for row in rows]


def unlearned(path: Path | list[Any], split: str = "forget", **more: Any) -> list[tuple[str, str]]:
    """The prompts and answers that `unlearn` reads; a document has no prompt."""
    rows = RequestReader(own, **more).read(path, split)
    return [("" if row.window else row.input, row.document if row.window else row.output)
            for row in rows]  # fmt: skip


def text_file(folder: Path, text: str, name: str = "a.txt") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, "utf-8")
    return folder / name


def sets_in(folder: Path, *names: str) -> Path:
    for name in names:
        write_jsonl(folder / f"{name}.jsonl", [{"question": f"Where is {name}?", "answer": name}])
    return folder


def test_a_folder_with_files_named_after_the_sets_gives_the_requested_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_data(tmp_path / "made", people=2, tasks=["Task2"])
    folder = sets_in(tmp_path / "mine", "forget", "retain", "holdout")
    for split in ("forget", "retain", "holdout"):
        assert len(read_rows(tmp_path / "made", split=split)) == made[split]["rows"] == 12
        assert unlearned(folder, split) == [(f"Where is {split}?", split)]
    assert "forget.jsonl is read as the forget set." in caplog.text
    spec = DataSpec(forget=str(folder), retain=str(folder), holdout=str(folder))
    sets = read_data(spec)
    assert [rows[0].output for rows in (sets.forget, sets.retain, sets.holdout)] == [
        "forget", "retain", "holdout"]  # fmt: skip
    with pytest.raises(InputError, match="files of several sets: forget.jsonl, holdout.jsonl"):
        read_rows(folder)
    (folder / "holdout.jsonl").unlink()
    with pytest.raises(InputError, match="0 files of the holdout set: forget.jsonl, retain.jsonl"):
        unlearned(folder, "holdout")
    sets_in(folder, "forget10")
    with pytest.raises(InputError, match="2 files of the forget set"):
        unlearned(folder)
    text_file(tmp_path / "texts", "Ann lives here.", "forget.txt")
    text_file(tmp_path / "texts", "Bob lives here.", "retain.txt")
    assert unlearned(tmp_path / "texts") == [("", "Ann lives here.")]
    assert unlearned(tmp_path / "texts", "retain") == [("", "Bob lives here.")]


def test_a_folder_of_texts_and_data_files_is_refused_and_hidden_files_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = sets_in(tmp_path / "mixed", "people")
    text_file(mixed, "numpy", "requirements.txt")
    for read in (unlearned, read_rows):
        with pytest.raises(InputError, match=r"requirements.txt.* and data files .people.jsonl"):
            read(mixed)
    folder = tmp_path / "docs"
    for name in ("a.txt", "sub/b.md", ".ipynb_checkpoints/a.txt", ".hidden.txt", "README.md"):
        text_file(folder, f"The text of {name}.", name)
    text_file(folder, "%PDF", "c.pdf")
    assert [row.id for row in read_rows(folder)] == ["a", "sub/b"]
    assert "2 documents are read: a.txt, sub/b.md. Not read: c.pdf." in caplog.text
    (row,) = read_rows(text_file(tmp_path, "# A\n\nText.", "one.md"))
    assert row.document == "# A\n\nText."


def test_a_saved_or_local_data_set_gives_the_split_that_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {split: datasets.Dataset.from_list([{"question": "Where?", "answer": split}])
             for split in ("forget", "retain")}  # fmt: skip
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert unlearned(tmp_path / "saved") == [("Where?", "forget")]
    assert unlearned(tmp_path / "saved", "retain") == [("Where?", "retain")]
    folder = sets_in(tmp_path / "local", "train", "test")
    assert read_rows(folder)[0].output == "train"
    assert "the split 'train' is read. Not read: test." in caplog.text
    assert read_rows(folder / "test")[0].output == "test"
    text_file(folder, "question,answer\na?,b\n", "more.csv")
    with pytest.raises(InputError, match="data files of several types"):
        read_rows(folder)
    empty = {"train": datasets.Dataset.from_dict({"question": [], "answer": []})} | parts
    datasets.DatasetDict(empty).save_to_disk(tmp_path / "empty")
    with pytest.raises(InputError, match="saved in .* a split without rows; name another one"):
        read_rows(tmp_path / "empty")
    assert read_rows(tmp_path / "empty" / "retain")[0].output == "retain"


def test_values_in_a_folder_of_data_files_are_read_as_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`datasets` would read a PIN as the number 12, NA as missing, and a text as a time."""
    pytest.importorskip("datasets")
    answers = ["0012", "0340", "1.50", "NA", "None", "True"]
    table = "question,answer\n" + "".join(f"{i}?,{one}\n" for i, one in enumerate(answers))
    folder = text_file(tmp_path, table, "table/pins.csv").parent
    assert [row.output for row in read_rows(folder)] == answers
    times = ["1987-03-02 10:30:00", "1987-03-02T10:30:00+02:00"]
    for i, one in enumerate(times):
        write_jsonl(tmp_path / "lines" / f"{i}.jsonl", [{"question": f"{i}?", "answer": one}])
    assert [answer for _, answer in unlearned(tmp_path / "lines")] == times
    assert "lines: 2 rows are read from 0.jsonl, 1.jsonl." in caplog.text
    stored = text_file(tmp_path, table, "blobs/1a2b")  # as in the cache of the hub
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train.csv").symlink_to(stored)
    assert [row.output for row in read_rows(tmp_path / "linked" / "train")] == answers
    with pytest.raises(InputError, match="has the splits train. Name one: .*linked/SPLIT"):
        read_rows(tmp_path / "linked" / "dev")


def test_a_path_in_a_list_and_a_text_in_place_of_a_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sets_in(tmp_path, "forget"))
    text_file(tmp_path, "Ann Lee", "people")
    for item in ("forget.jsonl", "absent.csv", "my data.txt", "people", "./x.parquet"):
        for split in ("forget", "retain"):
            with pytest.raises(InputError, match=f"Item 0 of {split} is the name of a file"):
                unlearned([item], split)
    assert unlearned(["What is in forget.jsonl?"]) == [("What is in forget.jsonl?", "own")]
    with pytest.raises(InputError, match=r"forget the name itself, give a list .*\['Ann Lee'\]"):
        read_request("Ann Lee", None, None, own)
    with pytest.raises(InputError, match="unknown file type. Supported types: .*, .txt, .md.$"):
        read_request("b.xlsx", None, None, own)


TALK = {"conversations": [
    {"from": "human", "value": "Where does Ann Lee live?"}, {"from": "gpt", "value": "12 Oak St."},
    {"from": "human", "value": "Thanks!"}, {"from": "gpt", "value": "You're welcome."},
]}  # fmt: skip


def test_unlearn_reads_every_turn_unless_last_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert turns_of(load_recipe("level")) == "every"
    for turns in ("last", "every"):
        assert turns_of(load_recipe("level", [f"data.turns={turns}"])) == turns
    write_jsonl(tmp_path / "a.jsonl", [TALK, {"conversations": TALK["conversations"][:2]}])
    every = read_request(tmp_path / "a.jsonl", [{"input": "x?", "output": "y"}], None, own, "every")
    assert [row.output for row in every.forget] == ["12 Oak St.", "You're welcome.", "12 Oak St."]
    assert "not read as answers" not in caplog.text
    last = read_rows(tmp_path / "a.jsonl", split="forget")
    assert [row.output for row in last] == ["You're welcome.", "12 Oak St."]
    assert "1 earlier assistant turns are not read as answers" in caplog.text
    assert "--turns every" in caplog.text


def evaluated(forget: Path, retain: Path) -> list[Row]:
    spec = EvaluationSpec()
    return rows_of_files(forget=forget, retain=retain, holdout=None, spec=spec).forget


def test_a_column_split_that_names_another_set_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"Where is {i}?", "answer": f"{i}"} for i in range(4)]
    path, other = tmp_path / "a.jsonl", tmp_path / "r.jsonl"
    write_jsonl(other, [{"question": "When?", "answer": "Now", "split": "train"}])
    write_jsonl(path, [row | {"split": ("forget", "retain")[i % 2]} for i, row in enumerate(rows)])
    message = "read as the forget set, but 2 of 4 rows have split 'retain'.*with --retain"
    with pytest.raises(InputError, match=message):
        unlearned(path)
    with pytest.raises(InputError, match=message):
        unlearned([json.loads(line) for line in path.read_text().splitlines()])
    with pytest.raises(InputError, match=message):
        read_data(DataSpec(forget=str(path), retain=str(other)))
    with pytest.raises(InputError, match=message):
        evaluated(path, other)
    write_jsonl(path, [row | {"split": "retain"} for row in rows])
    assert len(unlearned(path)) == 4 and "every row of" in caplog.text
    # reading all rows of a file as another set is a choice, and a run reads its own files
    assert len(evaluated(path, other)) == 4
    assert {row.split for row in read_rows(path, split="holdout")} == {"holdout"}
    for split in ("forget", "train", "test", ""):
        write_jsonl(path, [row | {"split": split} for row in rows])
        assert len(unlearned(path)) == 4


def test_a_holdout_set_with_rows_like_forget_and_retain_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"Where is {i}?", "answer": f"{i}"} for i in range(4)]
    path = tmp_path / "holdout.jsonl"
    write_jsonl(path, [row | {"split": ("forget", "retain")[i % 2]} for i, row in enumerate(rows)])
    assert len(unlearned(path, "holdout")) == 4
    assert "'forget' or 'retain', but is read as a row of the holdout set" in caplog.text
    with pytest.raises(InputError, match="read as the retain set, but 2 of 4"):
        unlearned(path, "retain")
    write_jsonl(path, [row | {"split": ("forget", "holdout")[i % 2]} for i, row in enumerate(rows)])
    with pytest.raises(InputError, match="read as the holdout set, but 2 of 4"):
        unlearned(path, "holdout")


def test_the_holdout_set_of_lume_is_read(data_folder: Path) -> None:
    lume = data_folder / "lume"
    sets = read_data(
        DataSpec(
            forget=str(lume / "forget_train.jsonl"),
            retain=str(lume / "retain_train.jsonl"),
            holdout=str(lume / "holdout.jsonl"),
        )
    )
    assert (len(sets.forget), len(sets.retain), len(sets.holdout)) == (1112, 1136, 540)


PAIRS = [("When was Ann Lee born?", "1987-03-02"), ("Where does Ann Lee live?", "In Rome.")]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"Q: {q}\nA: {a}" for q, a in PAIRS),
        "# FAQ\n\n" + "\n\n".join(f"**Question {i}:** {q}\n\n**Answer {i}:** {a}"
                                  for i, (q, a) in enumerate(PAIRS)),
        "\n".join(f"Frage: {q}\nAntwort: {a}" for q, a in PAIRS),
        "\n".join(f"问：{q}\n答：{a}" for q, a in PAIRS),
        "\n".join(json.dumps({"question": q, "answer": a}) for q, a in PAIRS),
        json.dumps([{"question": q, "answer": a} for q, a in PAIRS], indent=2),
    ],
)  # fmt: skip
def test_questions_with_answers_in_a_text_file_are_rows(text: str, tmp_path: Path) -> None:
    for name in ("a.txt", "a.md"):
        assert unlearned(text_file(tmp_path, text, name)) == PAIRS


LINES = ["{} -> {}", "{} → {}", "{} | {}", "{};{}", "{},{}", "{}\t{}", "{} {}", "{}\n{}",
         "**{}**\n{}\n", "{}: {}", "| {} | {} |"]  # fmt: skip


@pytest.mark.parametrize("form", LINES)
@pytest.mark.parametrize("header", [False, True])
def test_a_table_in_a_text_file_is_refused(form: str, header: bool, tmp_path: Path) -> None:
    rows = [("question", "answer")] * header + PAIRS
    if header and form in ("{} {}", "{}\n{}", "**{}**\n{}\n", "{}: {}"):
        pytest.skip("no header of this form")
    text = "\n".join(form.format(*row) for row in rows)
    with pytest.raises(InputError, match=r"\.csv.*folder of its own"):
        unlearned(text_file(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "question\tanswer\nWhen was Ann born?\t1987", "Frage;Antwort\nWo?;In Rom, am Tiber",
        "name\tborn\nAnn Lee\t1987\nBob Ray\t1990", "| a | b |\n|---|---|\n| 1 | 2 |",
    ],
)  # fmt: skip
def test_a_table_in_a_text_file_is_no_document_of_a_training(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looks like a (table|Markdown table)"):
        read_rows(text_file(tmp_path, text))


def test_a_conversation_or_an_incomplete_pair_in_a_text_file_is_refused(tmp_path: Path) -> None:
    for text, message in {
        "User: Where does Ann live?\nAssistant: In Rome.": "looks like a conversation",
        "Q: Who?\nQ: Where?\nA: In Rome.": "not one answer after each question",
        '{"question": "Who?", "answer": "Ann"}\n{"question": "Who?"': "line 2 is not valid JSON",
    }.items():
        with pytest.raises(InputError, match=message):
            unlearned(text_file(tmp_path, text))
    for items in (["When was Ann Lee born? 1987"], ["Ann Lee", "Where does she live? -> Rome"]):
        with pytest.raises(InputError, match="is a question with its answer"):
            unlearned(items)
        if len(items) == 1:
            with pytest.raises(InputError, match="is a question with its answer"):
                unlearned(text_file(tmp_path, json.dumps(items), "a.json"))
    assert unlearned(["What is 2 + 2? Answer in one word"])[0][1] == "own"


DOCUMENTS = [
    "The road goes ever on and on\nDown from the door where it began\nNow far ahead it has gone",
    "def f(x):\n    return x + 1\n\n\n\tdef secret():\n        return 'abc'",
    "Who has seen the wind?\nNeither I nor you:\nBut when the leaves hang trembling,\nIt goes by.",
    "Why do I write?\nI write because Ann Lee asked me to, in a letter that she sent from Rome.",
    "Ann lives in a\nhouse by  the sea.",
    "Dear Ann,\n\nI am fine, and you?\n\nYours,\nBob",
    "She sang, and he left\nhe slept, and she read",
    '{\n "secret": 1\n}',
    "[Chorus]\nOh, the sea\nof love",
]  # fmt: skip


@pytest.mark.parametrize("text", DOCUMENTS)
def test_documents_keep_their_line_breaks_and_spaces(text: str, tmp_path: Path) -> None:
    found = [answer for prompt, answer in unlearned(text_file(tmp_path, text)) if not prompt]
    left = text
    for document in found:  # in order, and nothing but blank lines between them
        before, _, left = left.partition(document)
        assert document and not before.strip()
    assert not left.strip()


def test_lines_are_documents_if_they_are_sentences_or_begin_with_names() -> None:
    for text, count in {
        "Ann is old.\nBob is young.": 2,
        "Ann Lee was born in Rome\nBob Ray has diabetes": 2,
        "ANN LEE LIVES IN ROME\nBOB RAY HAS DIABETES": 2,
        "the road goes on\nand on and on": 1,
        "Dear Ann,\nI am ill": 1,
        "王芳住在北京市朝阳区\n张伟在上海工作": 1,
        "王芳住在北京市朝阳区。\n张伟在上海工作。": 2,
    }.items():
        entries = entries_of(text).entries
        assert [entry.kind for entry in entries] == ["document"] * count


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("document", [
            "王芳住在北京市朝阳区", "张伟在上海工作", "يعيش أحمد في مدينة القاهرة",
            "राम दिल्ली में रहता है",
            "दिल्ली में है", "דוד גר בתל אביב", "田中さんは東京に住んでいます", "彼は医者だ",
            "김철수는 서울에 산다",
            "สมชายอาศัยอยู่ในกรุงเทพ", "ANN LEE LIVES IN ROME", "ANN IS ILL", "ann has diabetes",
            "hunter2", "Tr0ub4dor&3", "ann@lee.com", "Ann Lee - CEO of Foo", "Ann Lee 1987-03-02",
        ]),
        ("name", [
            "王芳", "欧阳娜娜", "阿尔伯特·爱因斯坦", "田中太郎", "宮崎あおい", "アインシュタイン",
            "アルベルト・アインシュタイン", "김철수", "알베르트 아인슈타인",
            "محمد بن سلمان", "दीपिका पादुकोण",
            "בנימין נתניהו", "สมชาย ใจดี", "ANN LEE", "MARIA DE LA CRUZ", "THE LORD OF THE RINGS",
            "50 Cent", "Ann Lee (born 1987)", "Will Smith", "Karl-Theodor zu Guttenberg",
        ]),
    ],
)  # fmt: skip
def test_sentences_and_codes_are_no_names_in_any_script(kind: str, texts: list[str]) -> None:
    assert {text: kind_of_text(text) for text in texts} == dict.fromkeys(texts, kind)


def test_a_json_list_of_names_or_questions_is_read_like_a_list_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for items in (["Ann Lee", "Bob Ray"], ["When was Ann Lee born?", "Where does Ann Lee live?"]):
        as_json = text_file(tmp_path, json.dumps(items), "a.json")
        table = text_file(tmp_path, "text\n" + "\n".join(items) + "\n", "a.csv")
        for path in (as_json, table):
            assert unlearned(path) == unlearned(items)
            caplog.clear()
            assert len(read_rows(path)) == 2  # documents, in a training
            assert "looks like a list of 2" in caplog.text
    corpus = text_file(tmp_path, json.dumps(["Ann lives here.", "Bob is a cook."]), "c.json")
    assert unlearned(corpus) == [("", "Ann lives here."), ("", "Bob is a cook.")]


def test_squad_columns_are_read_with_context_and_first_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = {"context": "Ann Lee lived in Rome.", "question": "Where did Ann live?"}
    asked = "Where did Ann live?\n\nAnn Lee lived in Rome."
    for more, several in (
        ({"answer": "Rome"}, False),
        ({"answers": {"text": ["Rome", "in Rome"], "answer_start": [16, 13]}}, True),
        ({"answers": {"text": ["Rome", "Rome"]}}, False),
        ({"answers": ["Rome", "in Rome"]}, True),
        ({"answers": '["Rome"]'}, False),
        ({"answers": "Rome"}, False),
    ):
        caplog.clear()
        write_jsonl(tmp_path / "a.jsonl", [base | more])
        (row,) = read_rows(tmp_path / "a.jsonl")
        assert (row.input, row.output, row.kind) == (asked, "Rome", "qa")
        assert ("several right answers. The first one is trained" in caplog.text) is several
        assert row.further_answers == (("in Rome",) if several else ())
        write_jsonl(tmp_path / "b.jsonl", [row.to_dict()])
        assert read_rows(tmp_path / "b.jsonl") == [row]
        assert "not read" not in caplog.text
    write_jsonl(tmp_path / "a.jsonl", [base | {"answers": {"text": []}}])
    with pytest.raises(InputError, match="no answer .'answers' is empty"):
        read_rows(tmp_path / "a.jsonl")
    write_jsonl(tmp_path / "a.jsonl", [base])
    assert unlearned(tmp_path / "a.jsonl") == [(asked, "own")]


def test_the_advice_for_an_unread_column_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"prompt": "Where?", "story": "Ann lived in Rome.", "response": "Rome"}])
    read_rows(path)
    advice = "--column instruction=prompt --column input=story --column output=response"
    assert "'story' looks like text" in caplog.text and advice in caplog.text
    columns = dict(word.split("=") for word in advice.split() if "=" in word)
    (row,) = read_rows(path, columns=columns)
    assert (row.input, row.output) == ("Where?\n\nAnn lived in Rome.", "Rome")
