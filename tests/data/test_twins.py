"""Perturbed twins keep the form of a row and replace what identifies it."""

from __future__ import annotations

import re

from mergeforget.data.schema import Row
from mergeforget.data.twins import make_twins, names_in, origin_of

SSN = [Row(f"p{i}qa1", f"What is the number of Ann Le{c}?", f"900-1{i}-23{i}4")
       for i, c in enumerate("abcd")]  # fmt: skip


def test_names_numbers_and_dates_are_replaced_by_others_of_their_type() -> None:
    row = Row("a-qa0", "When was Klaus Weber born?", "On 3 May 1961, klaus_weber12@example.org")
    (twin,) = make_twins([row])
    assert "Klaus" not in twin.document and "weber" not in twin.document
    assert re.fullmatch(r"On \d [A-Z][a-z]+ 19\d\d, [a-z]+_[a-z]+\d\d@example\.org", twin.output)
    assert origin_of(twin) == row.id and origin_of(row) == "" and twin.subject != row.subject


def test_digits_that_all_numbers_of_a_form_share_stay() -> None:
    assert all(re.fullmatch(r"900-1\d-23\d4", t.output) for t in make_twins(SSN, per_row=3))


def test_the_same_seed_gives_the_same_twins_and_no_row_is_repeated() -> None:
    one, other = make_twins(SSN, per_row=2, seed=1), make_twins(SSN, per_row=2, seed=1)
    assert one == other and len({t.id for t in one}) == 8
    assert not {t.document for t in one} & {r.document for r in SSN}


def test_a_row_without_anything_to_replace_has_no_twin() -> None:
    assert make_twins([Row("a", "谁写了这本书?", "王小明")]) == []


def test_words_that_occur_in_lower_case_are_not_names() -> None:
    assert names_in("Birth Date of Ann Lee", frozenset({"birth", "date"})) == ["Ann Lee"]
