from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mergeforget.data.people import make_people
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.data.twins import as_stand_ins, imitated_name, nonmember_twins
from mergeforget.errors import InputError
from mergeforget.metrics._statistics import auc_draws
from mergeforget.search.split import (
    SearchData,
    check_enough,
    choosing_subjects,
    group,
    joined_tasks,
    split_measured,
)


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


def choose_and_report(matched: bool) -> tuple[float, np.ndarray, np.ndarray]:
    """Simulate searches on 12 forget rows and 24 non-members, 12 in each split.

    20 candidates move the forget rows by different amounts. The truth is the AUC of the chosen one
    against all non-members (normal with variance 1.36), of which 1 is that under the base.

    Returns:
        Share of intervals that contain the truth, the reported AUCs, and the true ones.
    """
    draw, covered, reported, truths = np.random.default_rng(3), 0, [], []
    names = [("holdout", f"{i:02}") for i in range(24)]
    for run in range(300):
        row, own = draw.normal(0, 0.7, (1, 12)), draw.normal(0, 0.7, (20, 12))
        members = draw.uniform(-1.5, 1.5, (20, 1)) + row + own
        common = draw.normal(0, 1, (1, 24))
        others = common + draw.normal(0, 0.6, (20, 24))  # each candidate changes them, too
        known = {name: float(nll) for (_, name), nll in zip(names, common[0], strict=True)}
        chosen = choosing_subjects(dict.fromkeys(names, ""), 0.5, run, known if matched else None)
        first = np.array([name in chosen for name in names])
        above = (others[:, None, first] > members[:, :, None]).mean((1, 2))
        best = int(np.argmin(np.abs(above - 0.5)))
        truths.append(norm.sf(members[best] / np.sqrt(1.36)).mean())
        report = others[best, ~first]
        low, high = np.percentile(auc_draws(-members[best], -report), [2.5, 97.5])
        covered += low <= truths[-1] <= high
        reported.append((report[None] > members[best][:, None]).mean())
    return covered / 300, np.array(reported), np.array(truths)


def test_the_report_covers_the_truth_of_a_candidate_that_was_chosen_on_the_same_forget_rows() -> (
    None
):
    for matched in (False, True):
        covered, reported, truths = choose_and_report(matched)
        assert covered >= 0.95
        assert abs(np.mean(reported - truths)) < 0.02  # the choice does not bias the report


def test_matched_splits_choose_a_candidate_that_is_nearer_to_chance_in_truth() -> None:
    """Of random splits, 23 % report an AUC beyond 0.35 to 0.65, and 11 % have one in truth."""
    _, reported, truths = choose_and_report(matched=True)
    _, random_reported, random_truths = choose_and_report(matched=False)
    assert np.mean(abs(reported - 0.5) > 0.15) < 0.12 < np.mean(abs(random_reported - 0.5) > 0.15)
    assert np.mean(abs(truths - 0.5) > 0.15) < 0.07 < np.mean(abs(random_truths - 0.5) > 0.15)


def test_splits_take_one_of_each_two_nonmembers_of_similar_difficulty() -> None:
    tasks = {("holdout", name): task for name, task in zip("abcdefgh", "xxxxxyyy", strict=True)}
    known = dict(zip("abcdefgh", (1.0, 9.0, 1.1, 9.1, 5.0, 20.0, 21.0, 22.0), strict=True))
    for seed in range(20):
        chosen = {name for _, name in choosing_subjects(tasks, 0.5, seed, known)}
        assert [len(chosen & set(pair)) for pair in ("ac", "eb", "df", "gh")] == [1] * 4
    drawn = [("holdout", "a") in choosing_subjects(tasks, 0.5, seed, known) for seed in range(40)]
    assert 8 < sum(drawn) < 32  # at random
    partly = {name: value for name, value in known.items() if name != "h"}  # h has the median, 9
    chosen = {name for _, name in choosing_subjects(tasks, 0.5, 0, partly)}
    assert [len(chosen & set(pair)) for pair in ("ac", "eb", "dh", "fg")] == [1] * 4
    others = {"another": 1.0}
    assert choosing_subjects(tasks, 0.5, 0, others) == choosing_subjects(tasks, 0.5, 0)
    retain = {("retain", name): "x" for name in "abcdefgh"}
    assert choosing_subjects(retain, 0.5, 0, known) == choosing_subjects(retain, 0.5, 0)
    some = choosing_subjects(tasks, 0.25, 0, known)
    assert len(some) == 2 and {name in "acbe" for _, name in some} == {True, False}


def test_both_splits_have_half_of_the_twins_of_each_row() -> None:
    rows = [Row(f"r{i}", f"When was Ann Lee{i} born?", f"1987-03-{i}") for i in range(10, 22)]
    twins = as_stand_ins(nonmember_twins(rows))
    tasks = joined_tasks((group(twin), twin.task) for twin in twins)
    draw = random.Random(0)
    known = {twin.subject: draw.random() for twin in twins}
    for difficulty in (None, known):
        chosen = choosing_subjects(tasks, 0.5, 0, difficulty)
        halves = Counter(imitated_name(name) for _, name in chosen)
        assert len(halves) == 12 and set(halves.values()) == {2}
    others = {("holdout", f"x-{name}"): task for (_, name), task in tasks.items()}  # real rows
    assert len(choosing_subjects(others, 0.5, 0)) == 24


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
