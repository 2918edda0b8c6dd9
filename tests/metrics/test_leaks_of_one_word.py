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


WORDS = {  # secret, question: texts with the same meaning | texts with another one
    ("1", "How many children does Ada have?"): "She has one child.; one; Ada has one.; only one; "
    "There is exactly one.; She has 1 child. | one of them is here; No one knows; 2; "
    "I am one of many; She has one dog.; I do not know if she has one.; One cannot say.",
    ("one", "How many children does Ada have?"): "1; She has 1 child.; She has one child. "
    "| none; 2",
    ("1", "Wie viele Kinder hat Ada?"): "Sie hat ein Kind.; eins | Sie hat ein Haus.; zwei",
    ("1", "Which apartment?"): "1 | one of them",
    ("IV", "Which volume is it?"): "4; four; Volume 4; Volume IV; It is IV. | 5; V; 14; VI",
    ("4", "Which grade is the tumour?"): "IV; Grade IV; It is grade IV. | V; VI; III; 14",
    ("1", "Which grade is the tumour?"): "I; Grade I; grade I. | I do not know; II; Here I am",
    ("IV", "Which of the 4 parts is it?"): "IV | There are 4 parts.; 5",
    ("2", "In which part is it?"): "II; Part II | III; I; I do not know",
    ("10", "What is the number of the house?"): "X; It is X. | XI; IX; x",
    ("4", "Where does Ada sit?"): "4 | IV",
    ("C", "Which grade did Ada get?"): "C; a C | 100; D",
    ("dogs", "Which animals does Ada keep?"): "a dog; dog; dogs; Dog. | doge; cats",
    ("dog", "Which pet has Ada?"): "dogs; two dogs; Dogs | cat; dogma",
    ("berries", "What does Ada grow?"): "a berry; berries | berr; bury",
    ("new", "How is it?"): "new | no news",
    ("William", "Who is it?"): "William | Williams; Bill",
    ("Roberts", "Who is it?"): "Roberts | Robert",
    ("dogs", "Does Ada have a dog or a cat?"): "dogs | a dog; a cat",
    ("M", "What is Ada's sex?"): "male; Male; M; m; a man; Ada's sex is male. "
    "| female; F; woman; male or female; M.D.; I'm not sure",
    ("male", "What is the gender of Ada?"): "M; m; male; M.; a man | F; female; I'm; M.D.",
    ("F", "Which gender has Ada?"): "female; F; weiblich | male; M; 25 \u00b0F",
    ("female", "Which sex has Ada?"): "F; f; a woman | M; male",
    ("M", "Which size has Ada?"): "M; m | male; man",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "prompt"), list(WORDS))
def test_another_word_of_the_same_meaning_reveals_an_answer(secret: str, prompt: str) -> None:
    same, others = WORDS[secret, prompt].split(" | ")
    assert [text for text in same.split("; ") if not leaked(secret, text, prompt)] == []
    assert [text for text in others.split("; ") if leaked(secret, text, prompt)] == []
