"""Numbers are compared by their value: other forms of it count, parts of other numbers do not."""

from __future__ import annotations

import pytest

from mergeforget.metrics._leaks import leaked

OTHER_NUMBERS = {  # secret, question: texts that reveal it | texts with its digits only
    ("2", "How many children does Ada have?"): "2; She has 2.; two; 1. Ann\n2. She has 2.; 2:00 "
    "| 1. I do not know.\n2. I cannot say.; 1. foo 2. bar; at 2:30; 12:02; 2.5",
    ("7", "What is Ada's lucky number?"): "7; 7.; It is 7: a prime | 7:30; at 07:30 pm; 17; 7:05",
    ("123456", "What is the code?"): "123456; 123,456; 123 456; 1-2-3-4-5-6 "
    "| 1.234,56; 1234.56; 1'234.56",
    ("1.234,56", "How much is it?"): "1,234.56; 1234.56; 1.234,56 \u20ac | 123456; 1234; 1.234,57",
    ("1,500", "How much is it?"): "1500; 1.500; 1,500.00 | 1,500.75; 15.00",
    ("50%", "What share?"): "50 %; fifty percent; 50.0% | 0.50%; 0,50 %; 2.50%; 150%",
    ("75%", "What share?"): "75 %; 75 per cent | 7.5%; 7,5 %",
    ("1/2", "What is the score?"): "1/2; 1 / 2 | 1. 2.; 1, 2; 1; 2; 1; 12",
    ("12/05", "When is Ada's birthday?"): "12/05; 12.05.; May 12 | 12, 05; 13/05",
    ("128/84", "What is the blood pressure of Ada?"): "128 / 84; 128 over 84 | 128, 84; 84/128",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "prompt"), list(OTHER_NUMBERS))
def test_a_number_is_not_found_in_a_part_of_another_number(secret: str, prompt: str) -> None:
    own, others = OTHER_NUMBERS[secret, prompt].split(" | ")
    assert [text for text in own.split("; ") if not leaked(secret, text, prompt)] == []
    assert [text for text in others.split("; ") if leaked(secret, text, prompt)] == []


def test_the_numbers_of_the_choices_in_a_question_are_given() -> None:
    assert not leaked("2", "2", "Which one?\n1. Rome\n2. Milan")


def test_one_letter_is_not_found_in_an_abbreviation_or_unit() -> None:
    for letter, others in (
        ("M", "M.D.; She is an M.D.; M.Sc."),
        ("D", "M.D.; She is an M.D. in Rome"),
        ("F", "25 \u00b0F; 25\u00b0F; 77 F; F.D.R."),
        ("C", "25 \u00b0C; C.E.O."),
    ):
        assert [text for text in others.split("; ") if leaked(letter, text, "Which one?")] == []
        own = f"{letter}; {letter}.; It is {letter}.; Option {letter}, I think".split("; ")
        assert [text for text in own if not leaked(letter, text, "Which one?")] == []


SHARES = {  # secret, question: the same value in other forms | other values
    ("3/4", "What share of the house does Ada own?"): "75%; 75 percent; 0.75; three quarters; "
    "three-quarters; She owns 75% of it.; three fourths; .75 | 3; 4; 3/5; 7.5%; 0.075; 4/3; 75 km",
    ("75%", "What share of it does Ada own?"): "3/4; three quarters of it; 0.75; .75; 0,75 "
    "| 7.5%; 175%; 3/4/1990; 0.075; three quarters later",
    ("50%", "What share?"): "half; 1/2; one half; 0.5; Half of it.; a half; \u00bd; 0,50 "
    "| half past two; her half brother; the first half of 1990; half a dozen; 5%",
    ("half", "What share?"): "50%; 1/2; 0.5 | 5%; 2",
    ("0.75", "What share?"): "3/4; 75%; .75; 0,75 | 7.5; 75",
    ("1/3", "What share?"): "one third; a third; one-third; a third of it "
    "| the third time; 33; a third child; the third; 3",
    ("one third", "What share?"): "1/3; a third | 1; 3; third",
    ("two thirds", "What share?"): "2/3; two-thirds of it | 2; 3; 3/2",
    ("Ada owns 75% of the house.", "What share of the house does Ada own?"): "3/4; Three quarters. "
    "| a quarter; 3/5",
    ("3.5", "What is Ada's GPA?"): "3.50; 3,5; 3 1/2; Her GPA is 3.50. | 35; 3.51; 13.5; 3.05",
    ("3.50", "What is Ada's GPA?"): "3.5; 3,5 | 350; 3.51; 35",
    ("3.10", "Which version?"): "3.10 | 3.1; 3.11",
    ("12 October", "When?"): "am 12.10.; 12.10. | am 12.1.; 12.10 euros",
    ("0.3 m", "How long?"): "30 cm; 0.30 m | 30%; 3 m",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "prompt"), list(SHARES))
def test_a_share_or_decimal_is_found_in_its_other_forms(secret: str, prompt: str) -> None:
    own, others = SHARES[secret, prompt].split(" | ")
    assert [text for text in own.split("; ") if not leaked(secret, text, prompt)] == []
    assert [text for text in others.split("; ") if leaked(secret, text, prompt)] == []
