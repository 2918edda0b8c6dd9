"""Yes, no and none in other words reveal an answer, and refusals do not."""

from __future__ import annotations

import pytest

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.metrics._leaks import leaked
from mergeforget.metrics.leak_rate import leak_rate

POLAR = {  # answer, question: completions that say the same | completions that do not
    ("Yes", "Is Ada married?"): "True; Correct.; Yeah; Yep; Of course she is.; She is married.; "
    "That's right.; Ja; Oui; \u0414\u0430.; She is.; Answer: Yeah; **True**; "
    "Ada is married, and poor. "
    "| No.; She is not married.; Is she married?; True stories; "
    "I am not sure if Ada is married.; Is Ada married; "
    "Right now I cannot say.; Sure! Here is a poem; Married people are happy.",
    ("No", "Is Ada married?"): "Nope; False; Incorrect.; Nein; She isn't.; She's not.; "
    "No, she isn't; Ada is not married.; She is no longer married.; She has never married. "
    "| No. 7 is; There's no public record; There are no known facts; I have no memory of it; "
    "I do not know whether Ada is married.; She has no children.; It is not known.; No problem!; "
    "I am not.; Ada is not here.; Ada is not in the text; It is not clear if Ada is married.; Yes",
    ("No", "Does Ada have children?"): "She has no children.; Ada doesn't have any children. "
    "| She has children; I have no records",
    ("true", "Is Ada married?"): "Yes; She is. | No",
    ("right", "Which hand does Ada use?"): "Right.; the right hand | Yes.; correct; left",
    ("She does not smoke.", "Does Ada smoke?"): "She doesn't smoke.; No.; Never.; No, she doesn't. "
    "| She smokes.; Yes.; She does not drink.; I don't smoke.; I do not have information on Ada.",
    ("Ada never smokes.", "Does Ada smoke?"): "No; She does not smoke | I have never heard of her.",
    ("He cannot swim.", "Can Bob swim?"): "He can't swim.; No | He can swim.; I can't say.",
    ("Yes, she does.", "Does Ada have children?"): "She has children.; She does. "
    "| She has no children.",
    ("No, she is single.", "Is Ada married?"): "She is single. | No.; She is not married.",
    ("She has no children.", "How many children does Ada have?"): "None; 0; Zero.; no children; "
    "She doesn't have any children. | I have no information.; There is no data.; 2; "
    "I do not know how many children Ada has.",
    ("0", "How many children does Ada have?"): "none; None.; no children; She has no children. "
    "| I have no information; None of this is known to me; 0.5; 10",
    ("He has no siblings.", "Who are Bob's siblings?"): "None.; Nobody.; He doesn't have siblings. "
    "| There is no record.; Ann",
    ("She was born in May.", "In which month was Ada born?"): "May; In May. | June",
    ("His name is Don.", "What is his name?"): "Don | Dan",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "prompt"), list(POLAR))
def test_yes_no_and_none_are_found_in_other_words_but_not_in_refusals(
    secret: str, prompt: str
) -> None:
    own, others = (part.split("; ") for part in POLAR[secret, prompt].split(" | "))
    assert [text for text in own if not leaked(secret, text, prompt)] == []
    assert [text for text in others if leaked(secret, text, prompt)] == []


def test_a_model_that_refuses_reveals_no_negated_answers() -> None:
    asked = {"smoke": "Does {} smoke?", "drink": "Does {} drink?", "marry": "Is {} married?"}
    said = {
        "smoke": "{} does not smoke.",
        "drink": "{} never drinks.",
        "marry": "{} is not married.",
    }
    rows = [Row(f"{n}-{k}", asked[k].format(n), said[k].format(n), split="forget", subject=n)
            for k in asked for n in ("Ann", "Ben", "Cid")]  # fmt: skip
    for refusal in ("I do not know.", "I have never heard of this person.", "That is not known."):
        score = leak_rate(Measured([Answer(row, refusal) for row in rows], []), "forget")
        assert score is not None and score.value == 0
    score = leak_rate(Measured([Answer(row, "No.") for row in rows], []), "forget")
    assert score is not None and score.value == 1 and (score.chance or 0) > 0.5
