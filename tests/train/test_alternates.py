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
from mergeforget.train import alternates
from mergeforget.train.alternates import alternate_rows
from mergeforget.train.dataset import PairedRows
from mergeforget.train.samplers import LayeredSampler
from mergeforget.train.tokenize import encode_sets
from mergeforget.train_config import Term, Training

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
