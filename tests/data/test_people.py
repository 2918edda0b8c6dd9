from __future__ import annotations

import re
from collections import Counter

import pytest

from mergeforget.data.people import make_people
from mergeforget.data.schema import Row
from mergeforget.errors import UnknownNameError, UsageError

SIZES = {"forget": 5, "retain": 7, "holdout": 3}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return make_people(SIZES, seed=1)


def biographies(rows: list[Row]) -> list[Row]:
    return [r for r in rows if r.task == "Task2" and r.kind == "sc"]


def answers(rows: list[Row], question: int) -> list[str]:
    return [r.output for r in rows if r.task == "Task2" and r.id.endswith(f"qa{question}")]


def test_splits_have_the_requested_sizes(splits: dict[str, list[Row]]) -> None:
    for split, size in SIZES.items():
        kinds = Counter((r.task, r.kind) for r in splits[split])
        assert kinds == {
            ("Task1", "sc"): size, ("Task1", "qa"): size, ("Task2", "sc"): size,
            ("Task2", "qa"): 5 * size, ("Task3", "sc"): size, ("Task3", "qa"): size,
        }  # fmt: skip
        assert {r.split for r in splits[split]} == {split}


def test_the_same_seed_makes_the_same_people(splits: dict[str, list[Row]]) -> None:
    assert make_people(SIZES, seed=1) == splits
    assert make_people(SIZES, seed=2) != splits


def test_people_are_in_one_split_only() -> None:
    splits = make_people({"forget": 200, "retain": 200, "holdout": 200}, tasks=["Task2"])
    names = [
        m[1] for rows in splits.values() for r in rows
        if (m := re.match(r"What is the birth date of (.*)\?", r.input))
    ]  # fmt: skip
    assert len(names) == 600 == len(set(names))


def test_ids_have_the_form_of_lume(splits: dict[str, list[Row]]) -> None:
    uuid = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    form = {"Task1": f'"{uuid}"', "Task2": uuid, "Task3": r"\d+"}
    for row in splits["forget"]:
        assert re.fullmatch(form[row.task] + r"(sc1|qa\d)", row.id)
    ids = [r.id for rows in splits.values() for r in rows]
    assert len(set(ids)) == len(ids)


def test_answers_have_the_form_of_lume(splits: dict[str, list[Row]]) -> None:
    forms = [
        r"19\d\d-\d\d-\d\d", r"900\d{6}", r"\d{10}", r"[a-z_]+\d\d@example\.(com|net|org)",
        r"\d+ .+, .+, [A-Z]{2}, \d{5}\.",
    ]  # fmt: skip
    for question, form in enumerate(forms):
        for answer in answers(splits["retain"], question):
            assert re.fullmatch(form, answer), answer


def test_no_number_can_be_real(splits: dict[str, list[Row]]) -> None:
    for rows in splits.values():
        assert all(1 <= int(ssn[3:5]) < 50 for ssn in answers(rows, 1))
        assert all(phone[3:8] == "55501" for phone in answers(rows, 2))


def test_every_answer_is_in_its_document(splits: dict[str, list[Row]]) -> None:
    documents = {r.subject: r.document for r in splits["forget"] if r.kind == "sc"}
    for row in splits["forget"]:
        if row.kind == "qa" and not row.id.endswith("qa0"):
            plain = re.sub(r"\W", "", documents[row.subject])
            assert re.sub(r"\W", "", row.output) in plain
        elif row.task == "Task3" and row.kind == "qa":
            assert row.output in documents[row.subject]


def test_a_split_does_not_change_when_another_grows(splits: dict[str, list[Row]]) -> None:
    larger = make_people(SIZES | {"forget": 6}, seed=1)
    assert larger["retain"] == splits["retain"]


def test_a_single_task_can_be_generated(splits: dict[str, list[Row]]) -> None:
    alone = make_people(SIZES, seed=1, tasks=["Task2"])["forget"]
    assert alone == [r for r in splits["forget"] if r.task == "Task2"]


def test_unknown_task_and_split_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'Task2'"):
        make_people(SIZES, tasks=["Tsk2"])
    with pytest.raises(UnknownNameError, match="Did you mean 'holdout'"):
        make_people({"holdot": 1})
    with pytest.raises(UsageError, match="-1 documents"):
        make_people({"forget": -1})
