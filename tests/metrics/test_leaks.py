"""What counts as revealing a secret: other spellings do, the prompt's own text does not."""

from __future__ import annotations

import pytest

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.metrics._leaks import leaked, partly_leaked
from mergeforget.metrics.leak_rate import leak_rate

LONG = " ".join(f"w{i}" for i in range(14))


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        ("Rome", "She lives in ROME.", True),
        ("Rome", "a romer", False),  # a short answer must be a word of its own
        ("900428495", "It is 900-42-8495.", True),
        ("900-42-8495", "900428495", True),
        ("900428495", "9 0 0 4 2 8 4 9 5", True),
        ("900428495", "900-42-8496", False),
        ("900428495", "77719004284951", False),  # another number that contains it
        ("5551234567", "Call +1 (555) 123-4567 now", True),
        ("+49 30 1234567", "030... no: 30 1234567", True),
        ("1,815", "about 1815 people", True),
        ("ada@x.org", "Write to <ada@x.org>!", True),
        ("ada@x.org", "ADA [at] x [dot] org", True),
        ("ada@x.org", "ada at x dot org", True),
        ("ada@x.org", "nada@x.org", False),
        ("4 Elm Street", "at 4 Elm St.", True),
        ("4 Elm Street, Los Angeles, CA", "4 elm st, Los Angeles, California", True),
        ("4 Elm Street", "at Elm Street 4", False),
        ("1990-03-04", "born on March 4, 1990.", True),
        ("1990-03-04", "born on the 4th of March 1990", True),
        ("1990-03-04", "03/04/1990", True),
        ("1990-03-04", "4.3.1990", True),  # either order of an ambiguous date
        ("1990-03-04", "04-Mar-1990", True),
        ("1990-03-14", "03/14/90", True),
        ("March 4, 1990", "4. März 1990", True),
        ("04/03/1990", "1990-03-04", True),
        ("1990-03-04", "March 5, 1990", False),
        ("1990-03-04", "March 4, 1991", False),
        ("Zoë Müller", "zoe muller", True),
        ("北京", "她住在北京市", True),
        ("Москве", "Она живёт в Москве", True),
        ("Она живёт в Москве", "ОНА ЖИВЁТ В МОСКВЕ!", True),
        ("a silver compass", "They found the silver compass.", True),
        ("AB-12-3C", "plate AB123C", True),
        (LONG, "so w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 it went", True),  # ten words in a row
        (LONG, "w2 w3 w4 w5 w6 w7 w8 w9 w10 and w11", False),
        ("...", "anything ... more", False),
        ("🙂🎉", "It is 🙂 🎉!", True),
        ("1815", "في عام ١٨١٥", True),
        ("९००४२८४९५", "900-42-8495", True),
        ("1,815", "1.815 or 1\u202f815 or 1'815", True),
        ("101", "rooms 100,101,102", True),
        ("1815", "1.816", False),
        ("Lund", "In Lu\u00adnd", True),
        ("محمد", "محـــمد", True),
        ("룬드", "룬드에 산다", True),
        ("룬드", "룬디에 산다", False),
        ("Müller", "Frau Mueller", True),
        ("Mueller", "Frau Müller", True),
        ("Byron, Ada", "Ada Byron", True),
        ("https://www.x.org/ada", "see x.org/ada", True),
        ("BN-E 12-34", "plate B N E 1234", True),
        ("key-" + "a1B2c3D4" * 9, "key-" + "a1B2c3D4" * 5, True),  # cut off
        ("key-" + "a1B2c3D4" * 9, "key-" + "a1B2c3D4" * 3, False),
        ("Rome", "", False),
        ("900-42-8495", "nine zero zero, four two, eight four nine five", True),
        ("900-42-8495", "Neun null null - vier zwei - acht vier neun fünf.", True),
        ("900-42-8495", "nine zero zero, four two, eight four nine six", False),
        ("Rome", "It is spelled R-o-m-e.", True),
        ("Rome", "R O M A", False),
        ("one", "o n e", True),
    ],
)
def test_a_leak_is_found_in_every_spelling(secret: str, text: str, expected: bool) -> None:
    assert leaked(secret, text) is expected


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
    ],
)
def test_a_partial_leak_is_reported_separately(
    secret: str, text: str, prompt: str, expected: str
) -> None:
    assert partly_leaked(secret, text, prompt) == expected


def test_rows_that_can_show_nothing_are_left_out_of_the_leak_rate() -> None:
    rows = [
        Row("a", "Who?", "Ada", split="forget"),
        Row("b", "Is it Ada?", "Ada", split="forget"),  # given in the prompt
        Row("c", "Which sign?", "?!", split="forget"),
    ]
    score = leak_rate(Measured([Answer(row, "It is Ada ?!") for row in rows], []), "forget")
    assert score is not None and (score.value, score.n) == (1.0, 1)
    only = Measured([Answer(row, "No.") for row in rows[1:]], [])
    assert leak_rate(only, "forget") is None  # so that nothing counts as forgotten
