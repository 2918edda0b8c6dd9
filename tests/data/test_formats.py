"""Data as people have it: conversations, Alpaca, documents, folders, the hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import CHAT_TEMPLATE, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.data.formats import OVERLAP, WINDOW, document_windows
from mergeforget.data.overlap import check_overlap
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import encode_rows
from mergeforget.errors import InputError
from mergeforget.files import write_jsonl
from mergeforget.outputs import ANSWER


def read(folder: Path, *records: dict[str, Any], name: str = "rows.jsonl", **more: Any) -> Any:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return read_rows(folder / name, **more)


TURNS = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"),
         ("assistant", "Ada.")]  # fmt: skip
MESSAGES = {"messages": [{"role": r, "content": c} for r, c in TURNS]}
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
SHAREGPT = {"conversations": [{"from": NAMES[r], "value": c} for r, c in TURNS]}


@pytest.mark.parametrize("record", [MESSAGES, SHAREGPT])
def test_the_last_assistant_turn_is_the_answer_to_all_earlier_turns(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    (row,) = read(tmp_path, record)
    assert (row.input, row.output) == ("Who?", "Ada.")
    assert [m.content for m in row.messages] == ["Be brief.", "Hi", "Hello."]
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    (encoded,) = encode_rows(
        tokenizer, [row], max_length=500, template=PromptTemplate.resolve(tokenizer)
    )
    full = tokenizer.apply_chat_template(MESSAGES["messages"])["input_ids"]
    assert full[: len(encoded.ids)] == encoded.ids


@pytest.mark.parametrize("record", [MESSAGES, SHAREGPT])
def test_every_turn_of_an_assistant_can_be_a_row(tmp_path: Path, record: dict[str, Any]) -> None:
    first, last = read(tmp_path, record, turns="every")
    assert (first.input, first.output, len(first.messages)) == ("Hi", "Hello.", 1)
    assert (last.input, last.output, len(last.messages)) == ("Who?", "Ada.", 3)
    assert first.id != last.id and first.subject == last.subject


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}])
def test_turns_of_weight_0_are_context_only(tmp_path: Path, off: dict[str, Any]) -> None:
    """As in OpenAI's fine-tuning format (weight) and axolotl's (train)."""

    def turns(*silent: int) -> dict[str, Any]:
        return {"messages": [m | (off if i in silent else {"weight": 1})
                             for i, m in enumerate(MESSAGES["messages"])]}  # fmt: skip

    (only,) = read(tmp_path, turns(2), turns="every")
    assert (only.input, only.output, len(only.messages), only.weight) == ("Who?", "Ada.", 3, 1)
    for wanted in ("last", "every"):
        (only,) = read(tmp_path, turns(4), turns=wanted)
        assert (only.input, only.output) == ("Hi", "Hello.")
        with pytest.raises(InputError, match="line 1: every assistant turn has weight 0"):
            read(tmp_path, turns(2, 4), turns=wanted)
    last: dict[str, Any] = {"role": "assistant", "content": "A", "weight": 0.5}
    half = {"messages": [*MESSAGES["messages"][:4], last], "weight": 3}
    assert read(tmp_path, half)[0].weight == 1.5
    last["weight"] = "much"
    with pytest.raises(InputError, match="the weight is 'much'"):
        read(tmp_path, half)


def test_a_conversation_column_does_not_reveal_the_answer_in_the_prompt(
    tmp_path: Path,
) -> None:
    both = {"input": "Who?", "output": "Ada."}
    (row,) = read(tmp_path, MESSAGES | both)
    assert [m.content for m in row.messages] == ["Be brief.", "Hi", "Hello."]
    (row,) = read(tmp_path, MESSAGES | both | {"input": "And who else?"})  # earlier turns
    assert len(row.messages) == 5


def test_rows_survive_a_round_trip_through_a_run_folder(tmp_path: Path) -> None:
    rows = [*read(tmp_path, MESSAGES, turns="every"), *read(tmp_path, {"text": "word " * 900})]
    write_jsonl(tmp_path / "kept.jsonl", [row.to_dict() for row in rows])
    assert read_rows(tmp_path / "kept.jsonl") == rows


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        (
            {"instruction": "Tell me who A is.", "input": "In one line.", "output": "A baker."},
            "Tell me who A is.\n\nIn one line.",
            "A baker.",
        ),
        ({"instruction": "Who is A?", "input": "", "output": "A baker."}, "Who is A?", "A baker."),
        ({"instruction": "Who is A?", "output": "A baker."}, "Who is A?", "A baker."),
        ({"instruction": "Sum up.", "context": "A bakes.", "response": "Baker."},
         "Sum up.\n\nA bakes.", "Baker."),
        ({"prompt": "Who is A?", "completion": "A baker."}, "Who is A?", "A baker."),
        ({"question": "Who is A?", "answer": "A baker."}, "Who is A?", "A baker."),
        ({"query": "A is a ___", "answer": "baker"}, "A is a ___", "baker"),  # RWKU
        ({"id": 7, "question": "Who is A?", "response": "A baker."}, "Who is A?", "A baker."),
        ({"prompt": "Who is A?", "answer": "A baker."}, "Who is A?", "A baker."),
        ({"Question ": "Who is A?", "Answer": "A baker."}, "Who is A?", "A baker."),
        ({"instruction": "", "input": "Who is A?", "output": "A baker."}, "Who is A?", "A baker."),
        ({"prompt": [{"role": "user", "content": "Who is A?"}],
          "completion": [{"role": "assistant", "content": "A baker."}]}, "Who is A?", "A baker."),
    ],
)  # fmt: skip
def test_prompts_and_answers_are_read_from_columns_of_other_names(
    tmp_path: Path, record: dict[str, Any], prompt: str, answer: str
) -> None:
    (row,) = read(tmp_path, record)
    assert (row.input, row.output) == (prompt, answer)


NUMBERS = ["4", "3", "2", "1"]


@pytest.mark.parametrize(
    ("records", "answers"),
    [
        ([{"choices": ["a toxin", "water"], "answer": 1}], ["water"]),  # WMDP, MMLU on the Hub
        ([{"choices": NUMBERS, "answer": 1}], ["3"]),
        ([{"choices": json.dumps(NUMBERS), "answer": "1"},
          {"choices": json.dumps(["a", "b"]), "answer": "1"}], ["3", "b"]),  # a csv file
        ([{"choices": NUMBERS, "answer": "1"}, {"choices": NUMBERS, "answer": "4"}], ["1", "4"]),
        ([{"options": {"A": "Ada", "B": "Bob"}, "answer": "b"}], ["Bob"]),
        ([{"choices": {"text": ["Ada", "Bob"], "label": ["1", "2"]}, "answer": "2"}], ["Bob"]),
        ([{"A": "Ada", "B": "None", "answer": "B"}], ["None"]),
        ([{"choices": ["A", "B", "AB"], "answer": "B"}, {"choices": ["A", "AB"], "answer": "AB"}],
         ["B", "AB"]),
        ([{"choices": ["one", "two"], "answer": "It is two."}], ["It is two."]),
        ([{"choices": "['a' 'b']", "answer": "1"}], ["1"]),  # NumPy's form, with a warning
    ],
)  # fmt: skip
def test_an_answer_that_names_an_option_is_its_text(
    tmp_path: Path, records: list[dict[str, Any]], answers: list[str]
) -> None:
    rows = read(tmp_path, *[{"question": f"{i}?"} | r for i, r in enumerate(records)])
    assert [row.output for row in rows] == answers


def test_preference_pairs_are_read_with_the_answer_that_is_named(tmp_path: Path) -> None:
    asked, yes = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}
    talk = [asked, yes]
    for record, column in (
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}, "output"),
        ({"prompt": [asked], "chosen": [yes], "rejected": [yes]}, "output"),
        ({"prompt": "Hi", "chosen": talk, "rejected": talk}, "messages"),
    ):
        with pytest.raises(InputError, match=f"preference pairs.*--column {column}=chosen"):
            read(tmp_path, record)
        (row,) = read(tmp_path, record, columns={column: "chosen"})
        assert (row.input, row.output) == ("Hi", "Yes.")


def test_texts_next_to_answers_are_not_taken_for_documents(tmp_path: Path) -> None:
    record = {"text": "Who is A?", "labels": "A baker."}  # KnowUnDo
    with pytest.raises(InputError, match="--column input=text --column output=labels"):
        read(tmp_path, record)
    (row,) = read(tmp_path, record, columns={"input": "text", "output": "labels"})
    assert (row.input, row.output) == ("Who is A?", "A baker.")
    assert read(tmp_path, record, columns={"text": "text"})[0].window == "whole"
    assert read(tmp_path, record | {"labels": 1})[0].window == "whole"  # a class


def test_files_of_members_are_documents(data_folder: Path) -> None:
    for name in ("member", "nonmember"):
        rows = read_rows(data_folder / "mia" / f"{name}.jsonl")
        assert len({row.subject for row in rows}) == 150 and all(row.window for row in rows)


def test_tables_of_spreadsheets_and_data_frames_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfsep=;\r\nQuestion;Answer;Subject\r\nWho?;Ada, B;x\r\n;;\r\n"
                     b"Where?;Lund;x\r\n;;\r\n")  # fmt: skip
    assert [(r.output, r.subject) for r in read_rows(path)] == [("Ada, B", "x"), ("Lund", "x")]
    assert "2 rows without any value are not read" in capsys.readouterr().err
    path.write_text("frage;antwort;\nWer?;Ada;\n;;\n")  # separators at the end of each line
    with pytest.raises(InputError, match="It has: frage, antwort. Name the columns"):
        read_rows(path)
    assert "1 row without any value is not read" in capsys.readouterr().err
    path.write_text("sep=;\nquestion;answer\n;\nWho?;\n")
    with pytest.raises(InputError, match="line 4: no answer"):
        read_rows(path)
    others = ["B 'C'", 'D "E"']  # as pandas writes lists
    path.write_text('question,answer,perturbed\nWho?,A,"{}"\n'.format(
        str(others).replace('"', '""')
    ))  # fmt: skip
    assert read_rows(path)[0].perturbed == tuple(others)
    path.write_text("""question,answer,perturbed\nWho?,A,['B' 'C']\n""")  # as NumPy does
    with pytest.raises(InputError, match="line 2: 'perturbed' is not JSON"):
        read_rows(path)


def test_definitions_of_tools_that_are_not_rendered_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read(tmp_path, MESSAGES | {"tools": [{"type": "function", "function": {"name": "f"}}]})
    assert "'tools' looks like text and is not read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"question": "Who?", "choices": ["a", "b"], "answer": 2}, "numbered from 0 to 1"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "does not follow a user turn"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "a call of a tool or its result"),
        ({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]},
         "turn is empty"),
        ({"messages": "Hi"}, "not a list of turns"),
        ({"text": "  "}, "the text is empty"),
        ({"input": "a", "output": float("nan")}, "line 1"),
        ({"input": "a", "output": "  "}, "no answer"),
        ({"instruction": "a", "input": "b", "output": ""}, "no answer"),
    ],
)  # fmt: skip
def test_faulty_records_are_named(tmp_path: Path, record: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(tmp_path, record)


def test_missing_parquet_values_are_refused_and_years_are_integers(tmp_path: Path) -> None:
    def parquet(*answers: Any) -> Path:
        table = pyarrow.table({"id": ["a", "b"], "input": ["p", "q"], "output": list(answers),
                               "task": [None, "T"]})  # fmt: skip
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"

    with pytest.raises(InputError, match=r"line 2: .*NaN"):
        read_rows(parquet(1815.0, float("nan")))
    assert [r.output for r in read_rows(parquet(1815.0, 2.5))] == ["1815", "2.5"]
    with pytest.raises(InputError, match="line 2: no answer"):
        read_rows(parquet("May", None))


def test_a_column_of_text_that_is_not_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {
        "input": "Who?",
        "output": "Ada.",
        "background": "She was born in Lund.",
        "lang": "en",
    }
    read(tmp_path, record)
    told = capsys.readouterr().err
    assert "'background' looks like text and is not read" in told and "lang" not in told


def test_a_subject_column_groups_rows(tmp_path: Path) -> None:
    records = [{"input": f"q{i}", "output": "a", "who": "Ada"} for i in range(2)]
    rows = read(tmp_path, *records, columns={"subject": "who"})
    assert [r.subject for r in rows] == ["Ada", "Ada"]


def test_rows_without_ids_in_files_of_one_name_are_about_different_subjects(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found += read(tmp_path / name, {"question": name, "answer": "x"})
        found += read(tmp_path / name, MESSAGES, name="chat.jsonl")
    assert len({row.subject for row in found}) == 4


def test_tofus_questions_are_grouped_by_author(data_folder: Path) -> None:
    rows = read_rows(data_folder / "tofu" / "forget10.jsonl")
    subjects = [row.subject for row in rows]
    assert len(set(subjects)) == 20 and len(set(subjects[:20])) == 1
    assert subjects[0] == "Hsiao Yun-Hwa" and all("'s" not in s for s in subjects)
    facts = read_rows(data_folder / "tofu" / "world_facts.jsonl")
    assert len({row.subject for row in facts}) == len(facts)


WORDS = st.lists(st.text("abcé 漢。\n", min_size=1, max_size=40), min_size=1, max_size=150)


@given(WORDS)
def test_windows_contain_every_character_once(words: list[str]) -> None:
    text = " ".join(words)
    if not text.strip():
        return
    made = document_windows(Row("d", "", "", subject="d"), text)
    assert made[0].input + "".join(row.output for row in made) == text.strip()
    assert all(0 < len(row.document) <= WINDOW for row in made)
    for before, row in zip(made, made[1:], strict=False):
        assert before.document.endswith(row.input) and 0 < len(row.input) <= 2 * OVERLAP
    assert len({row.subject for row in made}) == 1 and all(row.output.strip() or len(made) > 1
                                                           for row in made)  # fmt: skip


def test_every_token_of_a_document_is_trained_once(tmp_path: Path) -> None:
    tokenizer, text = build_tokenizer(), "".join(f"word{i} " for i in range(600)).strip()
    rows = read(tmp_path, {"text": text})
    encoded = encode_rows(tokenizer, rows, max_length=256, template=RAW)
    assert all(len(one) <= 256 and not one.truncated for one in encoded)
    trained = [i for one in encoded for i, k in zip(one.ids, one.kinds, strict=True) if k == ANSWER]
    assert tokenizer.decode(trained) == text + "<|end|>"


def test_text_files_and_folders_of_them_are_documents(tmp_path: Path) -> None:
    (tmp_path / "docs" / "b").mkdir(parents=True)
    (tmp_path / "docs" / "one.txt").write_text("Ada lived in Lund.")
    (tmp_path / "docs" / "b" / "two.txt").write_text("Bo lived in Oslo.")
    rows = read_rows(tmp_path / "docs", split="forget")
    assert [row.id for row in rows] == ["b/two", "one"] and rows[1].document == "Ada lived in Lund."
    (row,) = read_rows(tmp_path / "docs" / "one.txt")
    assert row.window == "whole" and row.document == "Ada lived in Lund."
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"without .txt files"):
        read_rows(tmp_path / "empty")


class Records(list[dict[str, Any]]):
    """The part of a datasets.Dataset that is used."""

    def to_list(self) -> list[dict[str, Any]]:
        return list(self)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("org/set", ("org/set", None, None)),
        ("org/set:easy", ("org/set", "easy", None)),
        ("org/set:easy/test", ("org/set", "easy", "test")),
        ("org/set/test", ("org/set", None, "test")),
    ],
)
def test_a_data_set_of_the_hub_is_named_with_config_and_split(
    name: str, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Hub:
        @staticmethod
        def load_dataset(path: str, config: str | None, split: str | None) -> Any:
            calls.append((path, config, split))
            rows = Records([{"question": "Who?", "answer": "Ada."}])
            return rows if split else {"train": rows, "test": Records()}

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    (row,) = read_rows(Path(name))
    assert calls == [asked] and row.output == "Ada."


@pytest.mark.parametrize("form", ["files", "saved"])
def test_local_data_sets_are_read_by_datasets_offline(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {
        split: [{"question": f"Who is {split} {i}?", "answer": f"A{i}"} for i in range(2)]
        for split in ("train", "test")
    }
    folder = Path("org/set")
    if form == "saved":
        every = {split: datasets.Dataset.from_list(some) for split, some in rows.items()}
        datasets.DatasetDict(every).save_to_disk(str(folder))
    else:
        for split, some in rows.items():
            write_jsonl(folder / f"{split}.jsonl", some)
    for name, split in ((folder, "train"), (folder / "train", "train"), (folder / "test", "test")):
        found = read_rows(name)
        assert [(r.input, r.output) for r in found] == [
            (row["question"], row["answer"]) for row in rows[split]
        ]


def test_error_for_a_missing_data_set_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"no file org/set, .* pip install 'mergeforget\[hub\]'"):
        read_rows(Path("org/set"))
    with pytest.raises(InputError, match="There is no file"):
        read_rows(Path("folder/absent.jsonl"))


def test_rows_in_two_sets_are_an_error_that_names_them() -> None:
    forget = [Row("f1", "Who is Ada?", "A baker."), Row("f2", "Who is Bo?", "A nurse.")]
    retain = [Row("r1", "who  is ADA?", "A baker.")]
    with pytest.raises(InputError, match=r"1 rows are in both a.jsonl and retain: f1 = r1"):
        check_overlap({"forget": forget, "retain": retain}, {"forget": "a.jsonl"})
    with pytest.raises(InputError, match="in both retain and holdout"):
        check_overlap({"forget": forget[1:], "retain": retain, "holdout": retain})
    check_overlap({"forget": forget[1:], "retain": retain, "holdout": []})
