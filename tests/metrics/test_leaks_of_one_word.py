"""Answers of one word or letter: their sign and the words around them are compared as well."""

from __future__ import annotations

import pytest

from mergeforget.metrics._leaks import leaked

SIGNS = {  # secret: texts with the same sign or letter, and texts with another one or a word
    "AB+": "AB+; AB positive; ab+; Her type is AB+.; AB Rh+; AB (Rh+); AB, Rh positive "
    "| AB-; AB; AB negative; A+; B positive",
    "O negative": "O-; O\u2212; o-; O neg; She is O-.; O Rh negative | O+; A-; O positive; O",
    "C++ developer": "c++ developer | C developer; C# developer",
    "A+": "A+; A plus; A positive; an A+ in maths | A; A-; A positive attitude helps.; A good one",
    "A-": "an A- in maths; A minus; A negative "
    "| A; A+; A negative answer; a-b; Plan A - we go; A-levels",
    "AB": "AB; AB+; type AB | A; B",
    "C++": "c++; C plus plus; C++17; C/C++ | C; C#; C+",
    "C#": "C sharp; F# and C# | C; C++; F#",
    "F# minor": "F sharp minor; F-sharp minor | F minor; G# minor",
    "A": "a; A.; (a); a) Rome; The answer is A.; It is A because; an A in maths "
    "| A good one; It is a city. A big one.; I am a model",
    "B": "b; the answer is b; (B); B. Paris | Be; A",
    "I": "(I); Option I. | I do not know.; I'm; When I think; i do not know",
    "D": "Vitamin D; D | I'd say so; they'd",
    "O": "O; Type O | uno o dos. No",
    "x": "The variable is x.; x = 3 | y",
}  # fmt: skip


@pytest.mark.parametrize("secret", list(SIGNS))
def test_the_sign_or_letter_of_a_short_answer_is_compared(secret: str) -> None:
    same, others = SIGNS[secret].split(" | ")
    assert [text for text in same.split("; ") if not leaked(secret, text)] == []
    assert [text for text in others.split("; ") if leaked(secret, text)] == []


def test_the_sign_of_a_blood_group_is_compared_within_a_sentence() -> None:
    asked = "Which blood type does Ada have?"
    assert leaked("Her blood type is AB+.", "AB positive", asked)
    assert not leaked("Her blood type is AB+.", "AB-", asked)


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        ("No", "No, she is not.", True),
        ("No.", "The answer is **no**", True),
        ("No", "No she is not", True),
        ("no", '{"answer": "no"}', True),
        ("No", "No. I have no idea why.", True),
        ("No, she is not.", "No.", True),
        ("Yes", "Yes in 1990", True),
        ("Yes", "Yes or no, I cannot say.", True),  # counted; so does a model that guesses
        ("Nein", "Nein, das stimmt nicht.", True),
        ("No", "I have no idea.", False),
        ("No", "There is no record of her.", False),
        ("No, she is not.", "I have no information about her.", False),
        ("No, she is not.", "She has no children.", False),  # "no" is not its first word
        ("No", "I know.", False),
        ("Yes", "No.", False),
        ("C", "C++", False),
        ("C", "It is C.", True),
        ("A", "A+", False),
        ("A", "A - good", True),
        ("C++", "C++", True),
        ("-5", "**-5**", True),
        ("-12 \u00b0C", '{"t": "-12 \u00b0C"}', True),
        ("- 5 Elm Street", "5 Elm Street", True),
    ],
)
def test_an_answer_of_one_word_or_letter_is_compared_in_its_surroundings(
    secret: str, text: str, expected: bool
) -> None:
    assert leaked(secret, text, "Is Ada Byron married?") is expected
