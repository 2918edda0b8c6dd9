from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.data.fields import is_visible
from mergeforget.data.overlap import distinct_rows
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError
from mergeforget.files import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"id": "asc1", "input": "Once, there", "output": "was\u2028None", "task": "Task1"},
    {"id": "aqa0", "input": "Who, \"then\"?", "output": "None", "task": "Task1"},
    {"id": "bqa0", "input": "Which code?\n\nA zip.", "output": "00725", "task": "Task2"},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if "t" in path.suffix else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    elif path.name.startswith("columns"):
        columns = {k: {str(i): r[k] for i, r in enumerate(rows)} for k in rows[0]}
        path.write_text(json.dumps(columns))
    elif path.name.startswith("list"):
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl", "rows.json", "list.json", "columns.json", "columns.jsonl", "r.parquet", "r.csv",
     "r.tsv"],
)  # fmt: skip
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read_rows(write(tmp_path / name, ROWS), split="forget")
    assert rows == [Row(**r, split="forget") for r in ROWS]


@pytest.mark.parametrize("name", ["one.jsonl", "one.json"])
def test_a_single_object_is_read_as_a_row(tmp_path: Path, name: str) -> None:
    assert len(read_rows(write(tmp_path / name, ROWS[:1]))) == 1


@given(text=st.text(min_size=1).filter(is_visible))
def test_any_text_survives_a_json_lines_round_trip(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    line = json.dumps({"input": text, "output": text}, ensure_ascii=False)
    path.write_bytes(line.encode("utf-8", "surrogatepass"))
    (row,) = read_rows(path)
    assert (row.input, row.output) == (text, text)


def test_the_split_in_the_file_is_the_default(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [ROWS[0] | {"split": "retain"}])
    assert read_rows(path)[0].split == "retain"
    assert read_rows(path, split="forget")[0].split == "forget"


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"key": "xqa0", "frage": "Wo?", "antwort": "Dort."}])
    names = {"id": "key", "input": "frage", "output": "antwort"}
    assert read_rows(path, columns=names) == [Row("xqa0", "Wo?", "Dort.")]


def test_question_and_answer_are_understood_and_ids_made(tmp_path: Path) -> None:
    asked = [{"question": "Who?", "answer": text} for text in ("She.", "He.")]
    path = write(tmp_path / "tofu.jsonl", asked)
    rows = read_rows(path)
    assert [(r.id, r.kind) for r in rows] == [("tofu-1qa0", "qa"), ("tofu-2qa0", "qa")]
    assert len({r.subject for r in rows}) == 2


def test_copies_of_rows_and_of_people_are_left_out_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A copy is no further evidence; a person that shares a single row with another is no copy."""
    texts = [
        ("a", "Who?", "Ada"), ("a", "Is it red?", "yes"), ("b", "who? ", "ADA"),
        ("c", "Is it red?", "yes"), ("c", "Where?", "Rome"), ("d", "Where?", "Oslo"),
        ("c", "WHERE?", "Rome"), ("e", "Where?", "Oslo"), ("e", "When?", "1815"),
    ]  # fmt: skip
    made = [Row(f"{i}", q, a, subject=s) for i, (s, q, a) in enumerate(texts)]
    assert [row.id for row in distinct_rows(made, "rows.jsonl")] == ["0", "1", "3", "4", "7", "8"]
    told = "rows.jsonl: 3 of 9 rows repeat others and count once: 6 = 4, 2 = 0, 5 = 7."
    assert told in caplog.text
    assert distinct_rows(made[:2]) == made[:2]


def test_other_columns_are_named_with_the_way_to_map_them(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"body": "a", "label": "b"}])
    with pytest.raises(InputError, match="no column 'input' and 'output'. It has: body, label"):
        read_rows(path)


def test_ambiguous_columns_are_refused(tmp_path: Path) -> None:
    row = {"question": "a", "answer": "b", "prompt": "c", "completion": "d"}
    with pytest.raises(InputError, match="Name the columns"):
        read_rows(write(tmp_path / "rows.jsonl", [row]))


def test_wrong_mapping_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(InputError, match="no column 'questoin'. Did you mean 'question'"):
        read_rows(path, columns={"input": "questoin", "output": "answer"})
    with pytest.raises(UsageError, match="Did you mean 'output'"):
        read_rows(path, columns={"outptu": "answer"})


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "forget.jsonl", ROWS)
    with pytest.raises(InputError, match="Did you mean 'forget.jsonl'"):
        read_rows(tmp_path / "forgte.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="is empty"):
        read_rows(tmp_path / name)


def test_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown file type. Supported types: .jsonl"):
        read_rows(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"input": "a", "output": ""}', "line 2: no answer .'output' is empty"),
        ('{"input": "a"}', "line 2: no answer"),
        ('{"input": null, "output": "b"}', "line 2: no prompt"),
        ('{"input": "a", "output": ["b"]}', "line 2: 'output' is not text but"),
        ('{"input": "a", "outp', "line 2 is not valid JSON"),
        ("[1, 2]", "line 2: not an object"),
        ('{"id": "x", "input": "a", "output": "b"}', "line 2: the id x is already used in line 1"),
    ],
)
def test_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "x", "input": "a", "output": "b"}\n' + line + "\n")
    with pytest.raises(InputError, match=f"bad.jsonl, {said}"):
        read_rows(path)


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [{"input": "a", "output": ""}] * 8)
    with pytest.raises(InputError, match=r"8 faults:\n  line 1: (.|\n)*line 5(.|\n)*and 3 more"):
        read_rows(path)


def test_line_numbers_of_a_csv_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('input,output\n"two\nlines",x\nonly one\n')
    with pytest.raises(InputError, match="line 4: 1 fields, the header has 2"):
        read_rows(tmp_path / "a.csv")


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"input": "a", "output": "b"}\n{"input": "\xff"}')
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_rows(tmp_path / "a.jsonl")


def test_truncated_parquet_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_rows(path)


def test_real_files_are_read_whole(data_folder: Path) -> None:
    forget = read_rows(data_folder / "lume" / "forget_train.jsonl")
    assert len(forget) == 1112 and {r.kind for r in forget} == {"sc", "qa"}
    assert len(read_rows(data_folder / "tofu" / "forget10_perturbed.jsonl")) == 400


def test_weights_are_read_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,input,output,importance\na,Who?,Ada.,2.5\nb,Who?,Bea.,\n")
    rows = read_rows(path, columns={"weight": "importance"})
    assert [row.weight for row in rows] == [2.5, 1.0]
    assert [row.to_dict().get("weight") for row in rows] == [2.5, None]


@pytest.mark.parametrize("weight", ["-1", "heavy", "nan", "inf"])
def test_a_weight_is_a_number_that_is_not_negative(weight: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "input": "Q", "output": "A", "weight": weight}) + "\n")
    with pytest.raises(InputError, match=r"line 1: the weight is"):
        read_rows(path)


@pytest.mark.parametrize(
    ("ids", "subjects"),
    [
        (["qa1", "qa2"], {"qa1", "qa2"}),
        (["test_qa1", "test_qa12"], {"test_qa1", "test_qa12"}),
        (["disc7", "disc8"], {"disc7", "disc8"}),
        (["a1bqa0", "a1bqa1"], {"a1b"}),  # two questions of one LUME document
        (["test_qa1", "other_qa1"], {"test_", "other_"}),
    ],
)
def test_ids_that_only_look_like_those_of_one_document(
    ids: list[str], subjects: set[str], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"id": i, "input": f"{i}?", "output": "a"} for i in ids])
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {row.subject for row in rows} == subjects
    again = tmp_path / "again.jsonl"
    write_jsonl(again, [row.to_dict() for row in rows])
    assert read_rows(again) == rows


def test_the_tenth_question_of_a_document_is_a_question() -> None:
    assert [Row(i, "", "").kind for i in ("a1qa9", "a1qa10", 'a1sc0"', "a1")] == [
        "qa", "qa", "sc", "other"]  # fmt: skip


def test_an_empty_document_of_a_folder_is_named(tmp_path: Path) -> None:
    for name, text in (("a", "Ann lives here."), ("b", " ")):
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(InputError, match=r"b\.txt: the text is empty"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nquestion;answer\nWhere, now?;Rome\n",
        '"sep=;"\r\nquestion;answer\r\nWhere, now?;Rome\r\n',
        "sep=|\nquestion|answer\nWhere, now?|Rome\n",
        "question;answer;note (source, page)\nWhere, now?;Rome;x\n",
        'question,answer,"a;b"\n"Where, now?",Rome,x\n',
    ],
)
def test_the_separator_of_a_table_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8-sig"))
    (row,) = read_rows(tmp_path / "a.csv")
    assert (row.input, row.output) == ("Where, now?", "Rome")


def test_faults_below_a_declared_separator_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\nquestion;answer\nWhere?;Rome\nWhen?\n")
    with pytest.raises(InputError, match="line 4: 1 fields, the header has 2"):
        read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize("name, hint", [("a.jsonl.gz", "Unpack"), ("a.xlsx", "as .csv")])
def test_an_unsupported_file_says_what_to_do(name: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"unknown file type.*{hint}"):
        read_rows(tmp_path / name)
