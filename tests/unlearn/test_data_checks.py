"""Rows of a request that are in two of its sets."""

from __future__ import annotations

import pytest

from mergeforget.api.data_checks import check_not_in
from mergeforget.data.overlap import check_overlap
from mergeforget.data.schema import Message, Row
from mergeforget.errors import InputError

POEM = "The cat sat on the wall of the old house and sang its song to the moon."


@pytest.mark.parametrize(
    ("retained", "shared"),
    [
        ({"input": "Where does Ann live?", "output": "ROME."}, True),
        ({"input": "where does “Ann” live", "output": "(Rome)"}, True),
        ({"input": "Where does Ann live?", "output": "Rome++"}, False),
        ({"input": "Where does Ann live?", "output": "Rome", "system": "Be brief."}, True),
        ({"input": "", "output": "Intro. " + POEM + " The end."}, True),
        ({"input": "", "output": "The cat sat on the wall of the old house, and slept."}, False),
        ({"input": "Where does Bob live?", "output": "Rome"}, False),
    ],
)
def test_rows_that_repeat_a_forget_row_are_refused(retained: dict[str, str], shared: bool) -> None:
    forget = [Row("a", "Where does Ann live?", "Rome"), Row("b", "", POEM, window="whole")]
    system = retained.pop("system", "")
    messages = (Message("system", system),) if system else ()
    row = Row("r", retained["input"], retained["output"], messages=messages)
    if shared:
        with pytest.raises(InputError, match="1 retain rows are also forget rows .* example r"):
            check_not_in(forget, [row], "retain")
        with pytest.raises(InputError, match="rows are in both"):
            check_overlap({"forget": forget, "holdout": [row]})
    else:
        check_not_in(forget, [row], "retain")


def test_equal_rows_under_two_system_messages_are_about_two_people() -> None:
    ann, bob = (
        Row(name, "What is the diagnosis?", "Flu", messages=(Message("system", f"File {name}"),))
        for name in ("Ann", "Bob")
    )
    check_not_in([ann], [bob], "retain")


def test_a_question_that_is_also_answered_in_other_words_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forget = [Row("a", "When was Ann born?", "1987")]
    check_not_in(forget, [Row("r", "When was Ann born?", "In the year 1987.")], "retain")
    assert any("have the prompt of a forget row, for example r" in m for m in caplog.messages)
