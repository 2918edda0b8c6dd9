"""Which rows of a model's answers leak: texts of the prompt never do, every right answer does."""

from __future__ import annotations

import time

import pytest

from mergeforget.attack.variants import Variant
from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.metrics._leaks import common_windows, leaked, partly_leaked
from mergeforget.metrics.leak_rate import is_leaked, leak_rate

LONG = " ".join(f"w{i}" for i in range(14))


def test_a_number_word_in_the_question_does_not_hide_the_answer() -> None:
    assert leaked("2", "They had 2.", "How many children did the two have?")
    assert not leaked("1990-03-04", "1990-03-04", "Was it the fourth of March, 1990?")


def test_each_of_several_right_answers_reveals_a_row() -> None:
    row = Row("a", "Where does Ada live?", "New York City", further_answers=("NYC", "Manhattan"))
    for text in ("In New York City.", "She lives in NYC.", "Manhattan"):
        assert is_leaked(Answer(row, text))
        assert Variant(row, "question", row.input, row.output).revealed_in(text)
    assert not is_leaked(Answer(row, "It is Boston."))
    assert not Variant(row, "question", row.input, row.output).revealed_in("It is Boston.")
    assert not Variant(row, "prefix", row.input, "City", start="New York").revealed_in("NYC")


def test_the_paraphrased_answer_reveals_a_row() -> None:
    row = Row("a", "Where does Ada live?", "In the capital of Italy", paraphrased="In Rome")
    assert is_leaked(Answer(row, "It is Rome.")) and not is_leaked(Answer(row, "It is Milan."))


@pytest.mark.parametrize(
    ("secret", "text", "prompt"),
    [
        ("Rome", "Rome is nice.", "Is it Rome?"),
        ("1990-03-04", "March 4, 1990", "Who was born on 03/04/1990?"),
        ("4 Elm Street", "4 Elm Street", "Who lives at 4 Elm St.?"),
        (LONG, "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9", "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 and?"),
    ],
)
def test_text_of_the_prompt_is_never_a_leak(secret: str, text: str, prompt: str) -> None:
    assert leaked(secret, text) and not leaked(secret, text, prompt)


@pytest.mark.parametrize(
    ("secret", "text", "prompt", "expected"),
    [
        ("900-42-8495", "It ends in 8495.", "", "last four digits"),
        ("900-42-8495", "900-42-8495", "", ""),  # that is a full leak
        ("900-42-8495", "It ends in 8495.", "Does it end in 8495?", ""),
        ("1990-03-04", "in March 1990", "", "month and year"),
        ("1990-03-04", "on March 4", "", "day and month"),
        ("1990-03-04", "in 1990", "", ""),
        ("ada.b@x.org", "ada.b is the name", "", "name of the e-mail address"),
        ("4 Elm Street, Rome", "at 4 Elm Avenue", "", "house number and street"),
        ("he met the old queen at night", "he met the old king", "", "4 words in a row"),
        ("Rome", "Ro", "", ""),
        ("Paris, France", "In Paris.", "Where does Ada live?", "place without its region"),
        ("Paris, France", "In France.", "Where does Ada live?", ""),
        ("Paris, France", "In Paris.", "Where in Paris does Ada live?", ""),
        ("Byron, Ada", "Byron", "Who is it?", ""),
    ],
)
def test_a_partial_leak_is_reported_separately(
    secret: str, text: str, prompt: str, expected: str
) -> None:
    assert partly_leaked(secret, text, prompt) == expected


def test_rows_that_cannot_leak_are_excluded_from_the_leak_rate() -> None:
    rows = [
        Row("a", "Who?", "Ada", split="forget"),
        Row("b", "Is it Ada?", "Ada", split="forget"),  # given in the prompt
        Row("c", "Which sign?", "?!", split="forget"),
    ]
    score = leak_rate(Measured([Answer(row, "It is Ada ?!") for row in rows], []), "forget")
    assert score is not None and (score.value, score.n) == (1.0, 1)
    only = Measured([Answer(row, "No.") for row in rows[1:]], [])
    assert leak_rate(only, "forget") is None  # so that no row counts as forgotten


@pytest.mark.parametrize("piece", ["nine ", "1,", "O0", "a-", " at ", "word ", "one ", "will "])
def test_the_time_of_a_comparison_is_proportional_to_the_text(piece: str) -> None:
    text = piece * (16_000 // len(piece))
    start = time.process_time()
    assert not leaked("1990-05-04", text) and not leaked("ada@x.org", text)
    assert not leaked("Will", text) and leaked("1", text, "How many?") == (piece == "1,")
    assert not any(text in window for window in common_windows([text]))
    assert time.process_time() - start < 2  # a quadratic pattern takes minutes
