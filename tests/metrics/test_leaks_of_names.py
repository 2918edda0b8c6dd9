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
