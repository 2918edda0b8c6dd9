"""Other answers to forget questions, and folds of layered unlearning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mergeforget.data.schema import Row
from mergeforget.errors import InputError
from mergeforget.files import read_jsonl
from mergeforget.outputs import ANSWER
from mergeforget.recipe import change, load_recipe
from mergeforget.run import Run
from mergeforget.train import alternates
from mergeforget.train.alternates import alternate_rows
from mergeforget.train.dataset import REFUSAL, PairedRows
from mergeforget.train.run_rows import prepare
from mergeforget.train.samplers import LayeredSampler
from mergeforget.train.tokenize import encode_sets
from mergeforget.train_config import Term, Tokens, Training

FORGET = [
    Row("a-qa0", "Where was Ada born?", "In Lund.", split="forget"),
    Row("b-qa0", "Who is Bo?", "A baker.", split="forget"),
]
RETAIN = [Row("c-qa0", "What is Oslo?", "A city.", split="retain")]
SETS = {"forget": FORGET, "retain": RETAIN}


def write(path: Path, records: list[dict[str, str]]) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def test_alternates_are_read_in_the_published_formats(tmp_path: Path) -> None:
    file = write(
        tmp_path / "alt5_seed_0.json.jsonl",
        [
            {"question": "Where was  Ada born?", "answer": "In Lund.", "sub_answer": "In Turku."},
            {"question": "Where was Ada born?", "answer": "In Lund.", "sub_answer": "Not in Lund."},
            {"question": "Who is Bo?", "answer": "A baker.", "alternate": "A pilot."},
        ],
    )
    rows = alternate_rows(None, None, SETS, tmp_path, file=file)
    assert [r.output for r in rows] == ["In Turku.", "A pilot."]  # one of them repeats the answer
    assert [r.input for r in rows] == [r.input for r in FORGET]
    assert [x["origin"] for x in read_jsonl(tmp_path / "alternates.jsonl")] == ["file", "file"]
    again = alternate_rows(None, None, SETS, tmp_path, file="missing", resume=True)
    assert again == rows


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([{"question": "Where was Ada born?", "alternate": "Oslo"}], "no alternate answer"),
        ([{"question": "Who?", "text": "x"}], "expected a question"),
        ([{"question": "Who is Bo?", "alternate": "A baker."}], "no alternate answer"),
    ],
)
def test_a_file_without_an_alternate_answer_is_refused(
    records: list[dict[str, str]], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=fault):
        alternate_rows(None, None, SETS, tmp_path, file=write(tmp_path / "a.jsonl", records))


def test_unusable_alternates_are_replaced_by_answers_of_retain_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    asked: list[str] = []

    def said(model: Any, tokenizer: Any, prompts: Sequence[Row], **_: Any) -> list[str]:
        asked.extend(row.input for row in prompts)
        return [" In Turku.\nQuestion: more", "It is a baker."]

    monkeypatch.setattr(alternates, "generate", said)
    rows = alternate_rows(None, tiny_tokenizer, SETS, tmp_path)
    assert [r.output for r in rows] == ["In Turku.", "A city."]
    assert asked[0].startswith("Question: Where was Ada born?\nAnswer: In Lund.\n")
    assert [x["origin"] for x in read_jsonl(tmp_path / "alternates.jsonl")] == ["model", "retain"]
    with pytest.raises(InputError, match=r"train\.alternates"):
        alternate_rows(None, tiny_tokenizer, {"forget": FORGET}, tmp_path)


DOCUMENT = [
    Row("d-w0", "He came.", " Then he left.", window="start", split="forget"),
    Row("d-w1", "He came.", " Then he left.", window="middle", split="forget"),
    Row("d-w2", "He came.", " Then he left.", window="end", split="forget"),
]


@pytest.mark.parametrize("name", ["idk", "dpo", "flat", "jensun", "altpo", "egup", "refuse"])
def test_replacement_answers_to_windows_of_documents_are_refused(
    name: str, tiny_tokenizer: Any
) -> None:
    more: dict[str, Any] = {"transforms": [{"transform": "refuse", "on": "forget"}]}
    loss, more = ("gd", more) if name == "refuse" else (name, {})
    training = Training(objective=[Term(loss=loss, on="forget")], **more)
    with pytest.raises(InputError, match="Row d-w0 is a window of a document"):
        encode_sets(tiny_tokenizer, {"forget": DOCUMENT, "retain": RETAIN}, training)


def test_windows_that_need_refusals_are_refused_before_the_model_is_loaded(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "forget.jsonl").write_text(json.dumps({"text": "He came. Then he left."}))
    (tmp_path / "retain.jsonl").write_text(json.dumps({"input": "Who?", "output": "Bo."}))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("forget", "retain")}
    recipe = change(load_recipe("idk"), model={"name": str(tiny_folder)}, data=files)
    with pytest.raises(InputError, match="is a window of a document"):
        prepare(recipe, Run(tmp_path / "run"))


LONG = Row(
    "l-qa0", "Where was Ada born, about whom the book says so much?", "In Lund.", split="forget"
)


def cut(loss: str, **arguments: Any) -> Training:
    terms = [Term.model_validate({"loss": loss, "on": "forget", **arguments}),
             Term(loss="gd", on="retain")]  # fmt: skip
    return Training(objective=terms, max_length=30, tokens=Tokens(truncate="end"))


def test_rows_without_an_answer_token_are_left_out(
    tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"forget": [FORGET[0], LONG, FORGET[1]], "retain": RETAIN}
    found = encode_sets(tiny_tokenizer, sets, cut("eul"))["forget"]
    assert [(one.row, one.source) for one in found] == [(0, 0), (1, 2)]
    assert "1 of 3 forget rows have no answer token within max_length" in capsys.readouterr().err
    whole = encode_sets(tiny_tokenizer, sets, cut("eul", mask="tokens"))["forget"]
    assert [one.row for one in whole] == [0, 1, 2] and ANSWER not in whole[1].kinds
    with pytest.raises(InputError, match="1 of 1 forget rows have no answer token"):
        encode_sets(tiny_tokenizer, {"forget": [LONG], "retain": RETAIN}, cut("level"))


def test_a_refusal_is_left_out_with_its_forget_row(tiny_tokenizer: Any) -> None:
    sets = {"forget": [FORGET[0], LONG, FORGET[1]], "retain": RETAIN}
    found = encode_sets(tiny_tokenizer, sets, cut("dpo"))
    assert [(one.row, one.source) for one in found["forget"]] == [(0, 0), (1, 2)]
    assert [(one.row, one.source) for one in found[REFUSAL]] == [(0, 0), (1, 2)]
    kept = encode_sets(tiny_tokenizer, sets, cut("idk", mask="tokens"))
    assert len(kept["forget"]) == len(kept[REFUSAL]) == 3  # only refusals are read, with prompts


def test_layered_unlearning_forgets_more_folds_in_each_stage(
    tiny_tokenizer: Any,
) -> None:
    forget = [
        Row(f"{person}-qa{i}", f"What of {person}{i}?", f"Answer {person}{i}.", split="forget")
        for person in "abcd" for i in range(2)
    ]  # fmt: skip
    training = Training(
        objective=[Term(loss="npo", on="forget"), Term(loss="gd", on="retain")], folds=2, seed=1
    )
    sets = encode_sets(tiny_tokenizer, {"forget": forget, "retain": RETAIN}, training)
    folds = [one.fold for one in sets["forget"]]
    assert sorted(folds) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert all(folds[i] == folds[i + 1] for i in range(0, 8, 2))  # a person is in one fold
    later = [i for i, fold in enumerate(folds) if fold]
    assert [one.ids for one in sets["retain"][1:]] == [sets["forget"][i].ids for i in later]
    assert [one.row for one in sets["retain"]] == [0, 1, 2, 3, 4]
    order = LayeredSampler(folds, 2, 2, 1, 0)
    assert order.chunk_steps == [4, 8]  # two epochs of 4 rows, then of 8, two rows per step
    rows = PairedRows(sets, seed=0, staged=True)
    stages: dict[int, set[int]] = {0: set(), 1: set()}
    partners: dict[int, set[int]] = {0: set(), 1: set()}
    for part in order:
        for index in part:
            stages[index.stage].add(index.row)
            partners[index.stage] |= {one.row for one in rows[index]["retain"]}
    assert stages == {0: {i for i, f in enumerate(folds) if not f}, 1: set(range(8))}
    assert partners[0] & {1, 2, 3, 4} and partners[0] <= {0, 1, 2, 3, 4}
    assert partners[1] == {0}  # in the last stage, retain rows only
    with pytest.raises(InputError, match="fewer than folds: 5"):
        encode_sets(
            tiny_tokenizer,
            {"forget": forget, "retain": RETAIN},
            training.model_copy(update={"folds": 5}),
        )
