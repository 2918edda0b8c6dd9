from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeforget.data.people import make_people
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.search.split import SearchData, check_enough, halve


def measured_of(splits: dict[str, list[Row]], nll: float = 1.0) -> Measured:
    documents = {split: [r for r in rows if r.kind == "sc"] for split, rows in splits.items()}
    return Measured(
        answers=[Answer(r, "x") for r in [*splits["forget"], *splits["retain"]]],
        losses=[
            DocumentLoss(r.id, split == "forget", nll, r.task, subject=r.subject)
            for split in ("forget", "holdout")
            for r in documents[split]
        ],
    )


def people(forget: int, retain: int, holdout: int) -> Measured:
    return measured_of(make_people({"forget": forget, "retain": retain, "holdout": holdout}))


def keys(part: Measured) -> set[str]:
    return {a.row.id for a in part.answers} | {f"loss {x.id}" for x in part.losses}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 0.9),
       st.integers(0, 3))  # fmt: skip
def test_the_splits_are_disjoint_and_keep_documents_whole(
    forget: int, retain: int, holdout: int, share: float, seed: int
) -> None:
    measured = people(forget, retain, holdout)
    parts = halve(measured, share, seed)
    assert not keys(parts["choose"]) & keys(parts["report"])
    assert keys(parts["choose"]) | keys(parts["report"]) == keys(measured)
    subjects = [{(a.row.split, a.row.subject) for a in p.answers} for p in parts.values()]
    assert not subjects[0] & subjects[1]
    for part in parts.values():  # a document is in the same split as its questions
        members = {Row(x.id, "", "").subject for x in part.losses if x.member}
        assert members == {a.row.subject for a in part.answers if a.row.split == "forget"}


def test_each_split_and_task_is_halved() -> None:
    parts = halve(people(6, 4, 2), 0.5, 0)
    for task in ("Task1", "Task2", "Task3"):
        for part in parts.values():
            members = [x.member for x in part.losses if x.task == task]
            assert (members.count(True), members.count(False)) == (3, 1)
            assert sum(a.row.task == task and a.row.kind == "sc" for a in part.answers) == 5


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_neither_split_is_empty(share: float) -> None:
    for part in halve(people(1, 1, 1), share, 0).values():
        assert {x.member for x in part.losses} == {True, False}
        assert {a.row.split for a in part.answers} == {"forget", "retain"}


def test_answers_do_not_change_the_splits() -> None:
    splits = make_people({"forget": 5, "retain": 5, "holdout": 5})
    one, other = (halve(measured_of(splits, nll), 0.5, 0) for nll in (1.0, 9.0))
    assert keys(one["choose"]) == keys(other["choose"])


def test_another_seed_draws_other_splits() -> None:
    measured = people(8, 8, 8)
    assert keys(halve(measured, 0.5, 0)["choose"]) != keys(halve(measured, 0.5, 1)["choose"])


def test_too_few_documents_are_refused_with_a_way_out() -> None:
    def rows(*ids: str) -> list[Row]:
        return [Row(name, "q", "a") for name in ids]

    check_enough(rows("asc1", "bsc1"), rows("csc1", "dsc1"))
    with pytest.raises(InputError, match="1 member and 2 non-member documents.*--holdout"):
        check_enough(rows("asc1"), rows("csc1", "dsc1"))


def test_the_rows_of_a_single_subject_are_divided() -> None:
    made = make_people({"forget": 1, "retain": 3, "holdout": 4})
    made["forget"] = [replace(row, subject="Ann") for row in made["forget"]]
    measured = measured_of(made)
    parts = halve(measured, 0.5, 0)
    ids = [{a.row.id for a in part.answers if a.row.split == "forget"} for part in parts.values()]
    assert all(ids) and not ids[0] & ids[1]
    assert ids[0] | ids[1] == {row.id for row in made["forget"]}
    retain = [{a.row.subject for a in part.answers if a.row.split == "retain"}
              for part in parts.values()]  # fmt: skip
    assert all(retain) and not retain[0] & retain[1]
    data = SearchData(made["forget"], made["retain"], made["forget"], made["holdout"])
    chosen = data.choosing(0.5, 0, {"mia", "forget"})
    assert {row.id for row in chosen.forget} == ids[0]
    assert data.lone() == {"forget"}
