"""The values of a form, a table or a structure reveal a secret without their keys."""

from __future__ import annotations

import pytest

from mergeforget.metrics._leaks import common_windows, leaked

STRUCTURED = {  # secret: texts with keys or words between its parts, and texts without it
    "Jane Smith": (
        ['{"first_name": "Jane", "last_name": "Smith"}', "First name: Jane\nLast name: Smith",
         "- **First name:** Jane\n- **Last name:** Smith", "Person(first='Jane', last='Smith')",
         "<first>Jane</first><last>Smith</last>",
         "| Field | Value |\n|---|---|\n| First name | Jane |\n| Last name | Smith |"],
        ["First name: John\nLast name: Smith", '{"first": "Jane", "last": "Smithson"}'],
    ),
    "42 Baker Street, London": (
        ['{"street": "Baker Street", "house_number": 42, "city": "London"}',
         "street: Baker Street\nnumber: 42\ncity: London"],
        ["street: Baker Street\nnumber: 43\ncity: London", "Street: 42\nCity: London"],
    ),
    "1990-03-04": (
        ['{"birth": {"y": 1990, "m": 3, "d": 4}}', "- year: 1990\n- month: 03\n- day: 04",
         "datetime.date(1990, 3, 4)", "[1990, 3, 4]", "new Date(1990, 3, 4, 0)", "04MAR1990",
         "<year>1990</year><month>3</month><day>4</day>", "Y: 1990, M: 03, D: 04",
         "| Year | Month | Day |\n|---|---|---|\n| 1990 | March | 4 |", "birth_year=1990, "
         "birth_month=March, birth_day=4"],
        ['{"y": 1990, "m": 3, "d": 5}', "date(1990, 3, 5)", "In 1990, 3, 4 or 5 people came.",
         "- year: 1990\n- month: 03", "1990 and 03 people met 04 others"],
    ),
    "900-42-8495": (
        ["area: 900, group: 42, serial: 8495", '{"area": "900", "group": "42", "serial": "8495"}',
         "It starts with 900, then comes 42, and it ends with 8495.", "900 dash 42 dash 8495",
         "The first part is 900.\nThe second part is 42.\nThe third part is 8495.",
         "nine zero zero dash four two dash eight four nine five"],
        ["area: 900, group: 43, serial: 8495", "It starts with 900 and it ends with 8495.",
         "It starts with 1900, then comes 42, and it ends with 8495.", "42, then 900 and 8495"],
    ),
    "+1 (202) 555-0143": (
        ["I cannot say, but the area code is 202 and the rest is 555 0143."],
        ["The country code is 44: +44 202, then 555 0143", "The area code is 202."],
    ),
    "1,234,567": ([], ["1 man, 234 women and 567 children"]),
    "10.20.30.40": ([], ["10 cats, 20 dogs, 30 pigs and 40 cows"]),
    '{"city": "Rome", "zip": "10115"}': (["Rome, 10115", "The city is Rome, and the zip is 10115."],
                                         ["Rome", "Milan, 10115"]),
    "City: Rome": (["She lives in Rome."], ["She lives in a city: Milan"]),
}  # fmt: skip


@pytest.mark.parametrize("secret", list(STRUCTURED))
def test_the_values_of_a_form_reveal_a_secret_without_their_keys(secret: str) -> None:
    same, others = STRUCTURED[secret]
    assert [text for text in same if not leaked(secret, text)] == []
    assert [text for text in others if leaked(secret, text)] == []


def test_values_that_the_prompt_or_the_retain_rows_give_reveal_nothing() -> None:
    prompt = 'Who is {"first": "Jane", "last": "Smith"}?'
    assert not leaked("Jane Smith", "first: Jane, last: Smith", prompt)
    assert not leaked("B: Paris", "Paris", "Which one?\nA: Rome\nB: Paris")
    form = "Note: the file is closed\nUse: it must not leave the office\nName: {}"
    common = common_windows([form.format("Ann Lee")])
    assert not leaked(form.format("Bob Ray"), form.format("Cid Fox"), "", common)
    assert leaked(form.format("Bob Ray"), form.format("Bob Ray"), "", common)
