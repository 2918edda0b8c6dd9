from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mergeforget.data.people import make_people
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.metrics._statistics import auc_draws
from mergeforget.search.split import SearchData, check_enough, split_measured


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


def keys(part: Measured, of: str = "retain holdout") -> set[str]:
    rows = {a.row.id for a in part.answers if a.row.split in of}
    return rows | {
        f"loss {x.id}" for x in part.losses if ("forget" if x.member else "holdout") in of
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 0.9),
       st.integers(0, 3))  # fmt: skip
def test_the_splits_share_forget_rows_only_and_keep_documents_whole(
    forget: int, retain: int, holdout: int, share: float, seed: int
) -> None:
    measured = people(forget, retain, holdout)
    parts = split_measured(measured, share, seed)
    assert not keys(parts["choose"]) & keys(parts["report"])
    assert keys(parts["choose"]) | keys(parts["report"]) == keys(measured)
    assert keys(parts["choose"], "forget") == keys(parts["report"], "forget")
    assert keys(parts["choose"], "forget") == keys(measured, "forget")
    subjects = [
        {(a.row.split, a.row.subject) for a in p.answers if a.row.split == "retain"}
        for p in parts.values()
    ]
    assert not subjects[0] & subjects[1]


def test_the_report_covers_the_truth_of_a_candidate_that_was_chosen_on_the_same_forget_rows() -> (
    None
):
    """20 candidates move 12 forget rows by different amounts; 12 non-members choose, 12 report.

    The truth is the AUC of these 12 rows against all non-members (normal with variance 2).
    """
    draw, covered, apart, runs = np.random.default_rng(3), 0, [], 300
    for _ in range(runs):
        row, own = draw.normal(0, 0.7, (1, 12)), draw.normal(0, 0.7, (20, 12))
        members = draw.uniform(-1.5, 1.5, (20, 1)) + row + own
        common = draw.normal(0, 1, (1, 24))
        others = common + draw.normal(0, 1, (20, 24))  # each candidate changes them, too
        above = (others[:, None, :12] > members[:, :, None]).mean((1, 2))
        best = int(np.argmin(np.abs(above - 0.5)))
        truth = norm.sf(members[best] / np.sqrt(2)).mean()
        report = others[best, 12:]
        low, high = np.percentile(auc_draws(-members[best], -report), [2.5, 97.5])
        covered += low <= truth <= high
        apart.append((report[None] > members[best][:, None]).mean() - truth)
    assert covered / runs >= 0.95
    assert abs(np.mean(apart)) < 0.02  # the choice does not bias the report


def test_each_split_and_task_is_halved() -> None:
    parts = split_measured(people(6, 4, 2), 0.5, 0)
    for task in ("Task1", "Task2", "Task3"):
        for part in parts.values():
            members = [x.member for x in part.losses if x.task == task]
            assert (members.count(True), members.count(False)) == (6, 1)
            retain = [a.row for a in part.answers if a.row.split == "retain"]
            assert sum(row.task == task and row.kind == "sc" for row in retain) == 2


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_neither_split_is_empty(share: float) -> None:
    for part in split_measured(people(1, 1, 1), share, 0).values():
        assert {x.member for x in part.losses} == {True, False}
        assert {a.row.split for a in part.answers} == {"forget", "retain"}


def test_answers_do_not_change_the_splits() -> None:
    splits = make_people({"forget": 5, "retain": 5, "holdout": 5})
    one, other = (split_measured(measured_of(splits, nll), 0.5, 0) for nll in (1.0, 9.0))
    assert keys(one["choose"]) == keys(other["choose"])


def test_another_seed_draws_other_splits() -> None:
    measured = people(8, 8, 8)
    assert keys(split_measured(measured, 0.5, 0)["choose"]) != keys(
        split_measured(measured, 0.5, 1)["choose"]
    )


def test_too_few_documents_are_refused_with_a_way_out() -> None:
    def rows(*ids: str) -> list[Row]:
        return [Row(name, "q", "a") for name in ids]

    check_enough(rows("asc1"), rows("csc1", "dsc1"))
    with pytest.raises(InputError, match="2 member and 1 non-member documents.*--holdout"):
        check_enough(rows("asc1", "bsc1"), rows("csc1"))
    with pytest.raises(InputError, match="0 member and 2 non-member documents"):
        check_enough([], rows("csc1", "dsc1"))


def test_non_members_about_a_single_subject_are_divided() -> None:
    made = make_people({"forget": 1, "retain": 3, "holdout": 4})
    for split in ("forget", "holdout"):
        made[split] = [replace(row, subject="Ann") for row in made[split]]
    measured = measured_of(made)
    parts = split_measured(measured, 0.5, 0)
    ids = [{x.id for x in part.losses if not x.member} for part in parts.values()]
    assert all(ids) and not ids[0] & ids[1]
    assert ids[0] | ids[1] == {x.id for x in measured.losses if not x.member}
    retain = [{a.row.subject for a in part.answers if a.row.split == "retain"}
              for part in parts.values()]  # fmt: skip
    assert all(retain) and not retain[0] & retain[1]
    data = SearchData(made["forget"], made["retain"], made["forget"], made["holdout"])
    chosen = data.choosing(0.5, 0, {"mia", "forget"})
    assert chosen.forget == made["forget"] and chosen.members == made["forget"]
    assert not chosen.retain and 0 < len(chosen.nonmembers) < len(made["holdout"])
    assert data.lone() == {"holdout"}
