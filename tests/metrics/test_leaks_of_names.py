"""Names in other forms reveal them, and other words that are spelled as a name do not."""

from __future__ import annotations

import pytest

from mergeforget.metrics._leaks import leaked

HOMONYMS = {  # secret, question: texts that name it | texts with a word that is spelled so
    ("Will", "What is Ada's brother called?"): "Will; will; WILL; His name is Will.; "
    "Will, I think; his name is will; He is called Will Byron.; Will is his name. "
    "| I will not say.; i will not say; It will be fine.; Will you ask her?; Will this do?",
    ("May", "In which month was Ada born?"): "May; may; In May.; She was born in may.; MAY; "
    "12 May 1990; 12 may 1990; may 12; It is May, I think; 1990-05-12 "
    "| I may not know.; She may be ill.; You may ask.; May I ask you?",
    ("Hope", "What does Ada feel?"): "Hope; hope; She feels hope.; hope and joy; hope is her name "
    "| I hope this helps.; We hope so.; Hope this helps!",
    ("Mark", "Who is Ada's son?"): "Mark; mark; It is Mark. | We mark it.; Marks; you mark it",
    ("IT", "In which department does Ada work?"): "IT; it; the IT department; in IT; "
    "the it department | It is not known.; I do not know it.; it is not known; Is it?",
    ("US", "Where does Ada live?"): "US; us; the US; in the us | Contact us.; She told us.",
    ("AI", "In which field does Ada work?"): "AI; ai; in AI; She works as an AI researcher. "
    "| As an AI language model, I cannot say.; I'm an AI.; as an AI, I have no data; "
    "I am just an AI assistant and do not know.",
    ("Model", "What is Ada's job?"): "model; a model; She works as a model. "
    "| As a large language model, I cannot say.; As an AI language model, I do not know.",
    ("Rome", "Where does Ada live?"): "rome; She lives in rome. | to roam",
    ("Blue", "What colour is it?"): "It is blue. | It is green.",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "prompt"), list(HOMONYMS))
def test_a_verb_or_pronoun_is_not_a_name_of_the_same_letters(secret: str, prompt: str) -> None:
    own, others = HOMONYMS[secret, prompt].split(" | ")
    assert [text for text in own.split("; ") if not leaked(secret, text, prompt)] == []
    assert [text for text in others.split("; ") if leaked(secret, text, prompt)] == []


def test_a_question_with_a_verb_does_not_give_a_name_of_the_same_letters() -> None:
    assert leaked("May", "In May.", "May I ask in which month Ada was born?")
    assert not leaked("May", "In May.", "Was Ada born in May?")


FORMS = {  # secret: texts with the same name in another form | texts with another name
    "UK": "U.K.; the U.K.; UK; u.k.; in the U.K. since 1990 | US; U.S.; U.K.N.",
    "U.K.": "UK; the UK; uk | US; U.S.",
    "US": "U.S.; the U.S. | Contact us.; U.K.",
    "U.S.": "US; the US | He told us.; U.K.",
    "PhD": "Ph.D.; Ph. D.; phd; She has a Ph.D. in law. | M.D.; Ph",
    "Ph.D.": "PhD; a PhD; Ph.D | MD; M.D.",
    "MD": "M.D.; She is an M.D. | M; D; PhD",
    "B.Sc.": "BSc; a BSc | MSc; M.Sc.",
    "His name is J. R. Smith.": "J. R. Smith; It's J. R. Smith. | J. K. Smith",
    "10 a.m.": "10 am; 10 A.M. | 10 pm; 10 P.M.",
    "John Michael Smith": "John M. Smith; John M Smith; Smith, John M.; It is John M. Smith. "
    "| John Smith; John N. Smith; J. M. Smith; M. Smith; John Mark Smith",
    "John M. Smith": "John Michael Smith; John M Smith; Smith, John Michael "
    "| John Norman Smith; John Smith",
    "O'Brien": "O\u02bcBrien; O\u2019Brien; O`Brien; OBrien; O\u00b4Brien; O\uff07Brien | Brien; O",
    "Hawai\u02bbi": "Hawai'i; Hawaii | Haiti",
    "Ann, Ben": "Ben (5) and Ann (3); Ann and Ben; Ann is 3 and Ben is 5; 1. Ann\n2. Ben "
    "| Ann; Ben; Ann and Carl; Ann (3) and Carl (5)",
    "Ann and Ben": "The children are Ann (3) and Ben (5). | Ann met a man who knew her brother Ben",
    "red and blue": "blue and red | red, 3, blue",
    "$1,500": r"$1{,}500; \$1{,}500; $\$1{,}500$; $1,500$ | $1{,}501; $1,500,000",
    "4 March 1990": "$4$ March $1990$; $4$. March $1990$ | $5$ March $1990$",
    "$5": "It costs $5 and $6. | It costs $6 and $7.",
    "12 May": "5\u670812\u65e5; 5\uc6d4 12\uc77c; 12.5.; 12.05.; ng\u00e0y 12 th\u00e1ng 5 "
    "| 5\u670813\u65e5; 12.6.; 12.5; 12.5.1; It costs 12.5. That is all.",
    "5\u670812\u65e5": "May 12; 12 May; 12.5. | 12 June",
}  # fmt: skip


@pytest.mark.parametrize("secret", list(FORMS))
def test_another_form_of_a_name_or_number_reveals_it(secret: str) -> None:
    same, others = FORMS[secret].split(" | ")
    assert [text for text in same.split("; ") if not leaked(secret, text, "What is it?")] == []
    assert [text for text in others.split("; ") if leaked(secret, text, "What is it?")] == []


def test_an_abbreviation_without_dots_reveals_a_sentence() -> None:
    assert leaked("She lives in the U.K.", "In the UK.", "Where does she live?")
    assert not leaked("She lives in the U.K.", "In the US.", "Where does she live?")


def test_a_middle_initial_in_the_question_does_not_give_the_middle_name() -> None:
    asked = "What is the full name of John M. Smith?"
    assert leaked("John Michael Smith", "John Michael Smith", asked)
    assert not leaked("John Michael Smith", "John M. Smith", asked)
