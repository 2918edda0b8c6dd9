"""Transforms: seeded, not in place, and the text is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.data.schema import Row
from mergeforget.data.tokens import Encoded
from mergeforget.data.transforms import (
    REFUSALS,
    duplicate,
    find_transform,
    random_tokens,
    read_refusals,
    refuse,
    resegment,
)
from mergeforget.errors import InputError, UnknownNameError, UsageError
from mergeforget.outputs import ANSWER, PROMPT

LONG = Row("a-sc1", "Ada", 'was born. She said "so." Then she left! 3.5 was the end.', "Task1")
SHORT = Row("b-qa0", "Who?", "Ada", "Task2")


def test_resegment_moves_the_first_sentences_into_the_input() -> None:
    made = resegment([LONG, SHORT])
    assert [(r.input, r.output) for r in made] == [
        ("Ada", LONG.output),
        ("Ada was born.", 'She said "so." Then she left! 3.5 was the end.'),
        ('Ada was born. She said "so."', "Then she left! 3.5 was the end."),
        ('Ada was born. She said "so." Then she left!', "3.5 was the end."),
        ("Who?", "Ada"),
    ]
    assert {r.id for r in made[:4]} == {"a-sc1"} and made[0].kind == made[3].kind == "sc"


@given(st.text(alphabet='ab. !?\n"', min_size=1, max_size=40), st.sampled_from(["in", "in ", ""]))
def test_resegment_keeps_the_text(text: str, prompt: str) -> None:
    row = Row("x-sc1", prompt, text)
    for made in resegment([row]):
        assert made.document == row.document
        assert made.output.strip() or made == row
    for made in resegment([row], join=""):
        assert made.input + made.output == prompt + text


@pytest.mark.parametrize("window", ["whole", "start", "middle"])
def test_resegment_keeps_the_text_of_documents(window: Any) -> None:
    row = Row("x", "He came. ", "Then he left. All was well.", window=window)
    assert {made.document for made in resegment([row])} == {row.document}


def test_resegment_splits_after_full_stops_without_a_space() -> None:
    made = resegment([Row("x", "谁？", "她。我！")], join="")
    assert [(r.input, r.output) for r in made] == [("谁？", "她。我！"), ("谁？她。", "我！")]


def test_resegment_draws_the_same_rows_for_the_same_seed() -> None:
    many = [Row(f"{i}-sc1", "x", "A. B. C. D. E. F.") for i in range(8)]
    one, again, other = (resegment(many, most=2, seed=s) for s in (1, 1, 2))
    assert one == again != other and len(one) == 24


def test_duplicate_makes_as_many_rows_as_resegment() -> None:
    rows = [LONG, SHORT]
    made = duplicate(rows, like="resegment")
    assert len(made) == len(resegment(rows)) and made[:3] == [LONG, SHORT, LONG]
    assert duplicate(rows, times=2) == rows * 2
    with pytest.raises(UsageError, match="either times"):
        duplicate(rows)


def test_refuse_replaces_answers_only(tmp_path: Path) -> None:
    made = refuse([LONG, SHORT], seed=3)
    assert [r.input for r in made] == ["Ada", "Who?"] and made == refuse([LONG, SHORT], seed=3)
    assert all(r.output in REFUSALS for r in made) and len(set(REFUSALS)) == 100
    own = tmp_path / "own.txt"
    own.write_text("No idea.\n\n")
    assert refuse([LONG], texts=str(own))[0].output == "No idea."
    own.write_text("\n")
    with pytest.raises(InputError, match="one per line"):
        read_refusals(own)


def test_refusals_to_windows_of_documents_are_refused() -> None:
    window = Row("d-w1", "He came.", " Then he left.", window="start")
    with pytest.raises(InputError, match="Row d-w1 is a window of a document.*refusal"):
        refuse([SHORT, window])


def test_random_tokens_keep_prompt_length_and_end() -> None:
    one = Encoded([5, 6, 7, 8, 2], [PROMPT, PROMPT, ANSWER, ANSWER, ANSWER], row=4)
    (made,) = random_tokens([one], range(100, 200), seed=1)
    assert made.ids[:2] == [5, 6] and made.ids[4] == 2 and made.row == 4
    assert all(100 <= i < 200 for i in made.ids[2:4]) and one.ids[2] == 7
    assert random_tokens([one], range(100, 200), seed=1) == [made]


def test_unknown_transform_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'resegment'"):
        find_transform("resegmnt")
