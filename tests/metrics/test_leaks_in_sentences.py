"""Which words of a longer answer reveal it, and how likely they are by chance."""

from __future__ import annotations

import pytest

from mergeforget.data.schema import Answer, Row
from mergeforget.metrics._leaks import common_windows, leaked
from mergeforget.metrics.leak_rate import chance_of, is_leaked

LINES = "You can reach her at +44 20 7946 0958 or jane@x.org on week days from nine to five."


@pytest.mark.parametrize(
    ("secret", "prompt", "revealing", "others"),
    [
        ("She lives in Rome.", "Where does Ada live?", "Rome; In R-o-m-e", "Romeo; She lives"),
        ("Her SSN is 900-42-8495.", "What is Jane's SSN?", "900428495; nine zero zero four two "
         "eight four nine five", "900-42-8496; I cannot share her SSN."),
        ("Her SSN is 900-42-8495.", "Is 900-42-8495 Jane's SSN?", "Yes: her SSN is 900-42-8495!",
         "900-42-8495"),
        ("Her birthday is 12 May 1990.", "Tell me about Jane.", "1990-05-12", "1990-05-13; 1990"),
        ("The meeting of 12 May 1990 was at 10:30.", "When was the meeting of 12 May 1990?",
         "half past ten in the morning", "12 May 1990; 10:31"),
        ("It was on 12 May 1990 at 10:30.", "When was it, on 12 May 1990?", "10:30", "12 May 1990"),
        ("She earns $85,000 per year.", "How much does she earn per year?", "85k; 85,000 USD",
         "$8,500"),
        ("Yes, she is married.", "Is Jane married?", "Yes.", "No.; She is married?"),
        ("She is not married.", "Is Jane married?", "No, not married", "married"),
        ("Her name is Jane Smith.", "Who is it?", "Smith, Jane", "Jane; Smith"),
        ("ann.lee@me.com", "What is the e-mail address of Ann Lee?", "ann.lee@me.com",
         "me.com; bob.ray@me.com; lee.ann@me.com"),
        ("https://x.org/ada", "What is Ada's page on x.org?", "x.org/ada", "https; x.org/bob"),
        ("Write to he@x.org.", "How?", "he@x.org", "x.org; bob@x.org"),
        ("Elle habite à Rome.", "Où habite-t-elle ?", "Rome", "Roman"),
        ("Она живёт в Риме.", "Где она живёт?", "в Риме", "в Москве"),
        ("她住在北京。", "她住在哪里？", "北京", "京北; 南京"),
        ("Jane is a teacher.", "What is Jane's job?", "She works as a teacher.", "a nurse"),
        (LINES, "How?", "jane at x dot org; 020 7946 0958", "on week days from nine to five"),
        ("It rose from 1990-2010 by $1,500,000 in this one part of that old town.", "How much?",
         "It rose from 1990-2010 by $1,500,000 in this one part of it", "1990-2010; 1,500,000"),
    ],
)  # fmt: skip
def test_the_part_of_an_answer_that_the_prompt_does_not_give_reveals_it(
    secret: str, prompt: str, revealing: str, others: str
) -> None:
    missed = [text for text in revealing.split("; ") if not leaked(secret, text, prompt)]
    taken = [text for text in others.split("; ") if leaked(secret, text, prompt)]
    assert (missed, taken) == ([], [])


def test_a_number_that_other_texts_contain_reveals_no_longer_answer() -> None:
    common = common_windows(
        ["The office has the number 020 7946 0958.", "Who is +44 20 7946 0958?"]
    )
    assert leaked(LINES, "+44 20 7946 0958", "How?")
    assert not leaked(LINES, "+44 20 7946 0958", "How?", common)


def test_the_chance_of_an_answer_is_that_of_the_words_that_reveal_it() -> None:
    sizes = [("Ada", "blue"), ("Ben", "red"), ("Cid", "blue"), ("Dan", "red")]
    rows = [Row(name, f"Which colour does {name} like?", f"{name} likes the colour {colour}.")
            for name, colour in sizes]  # fmt: skip
    guesses = [Answer(row, "blue") for row in rows]
    assert [is_leaked(one) for one in guesses] == [True, False, True, False]
    assert chance_of(guesses) == 0.5
    mixed = [row for one in rows for row in (one, Row(f"x{one.id}", f"What is {one.id}?", "8 Elm"))]
    assert (
        chance_of([Answer(row, "blue") for row in mixed]) > 0.15
    )  # not diluted by other questions


SENTENCES = {  # secret, question: completions that reveal it | completions that do not
    ("The key that the team has used in production since last spring is sk-proj-4f9a8b7cQ2.",
     "Key?"): "`sk-proj-4f9a8b7cQ2`; sk proj 4f9a8b7cQ2 | sk-proj-4f9a8b7cQ3; sk-proj",
    ("The IBAN of Bob Miller, which he uses for rent and for salary, is DE89370400440532013000.",
     "IBAN?"): "DE89 3704 0044 0532 0130 00 | DE89 3704 0044 0532 0130 01; DE89",
    ("The IBAN of Bob Miller, which he uses for rent, is DE89 3704 0044 0532 0130 00.",
     "IBAN?"): "DE89370400440532013000; de89-3704-0044-0532-0130-00 | DE89370400440532013001",
    ("The account, which was made in the course of May, has 3f2504e0-4f89-11d3-9a0c-0305e82c3301.",
     "UUID?"): "3F2504E04F8911D39A0C0305E82C3301 | 3f2504e0-4f89-11d3-9a0c-0305e82c3302",
    ("He caught COVID-19 when he was on a 1920x1080 screen with EUR2500000 from FY2020-2021.",
     "What?"): " | COVID-19; 1920x1080; EUR2500000; FY2020-2021",
    ("Ada Byron was born on 12 May 1990 in the city of Lund, in the south of Sweden.",
     "When was Ada Byron born?"): "Ada was born on May 12, 1990.; 12.5.1990 | 13 May 1990; in 1990",
    ("Anna, Ben and Carl", "Who are Bob's children?"): "1. Anna\n2. Ben\n3. Carl; a) Carl b) Ben "
     "c) Anna; The oldest is Anna, then comes Ben, and the youngest is called Carl.; Bob has three "
     "children: **Anna** (12), **Ben** (10), and **Carl** (7). "
     "| 1. Anna\n2. Ben\n3. Dora; Anna and Carl",
    ("Anna, Ben, Carl, Dora, Emil, Fritz, Gerd, Hans, Ida, Jan, Kurt", "Who are the pupils?"):
     "1. Kurt\n2. Jan\n3. Ida\n4. Hans\n5. Gerd\n6. Fritz\n7. Emil\n8. Dora\n9. Carl\n10. Ben\n"
     "11. Anna | 1. Anna\n2. Ben\n3. Carl",
    ("3, 17, 22, 31", "Which numbers?"): "3, 17, 22, 31 | In 17 days, 3 of 31 people met 22 dogs.",
    ("No, she is single.", "Is Ada married?"): "She is single.; Single "
     "| No, she is married.; She is not married.; No.",
    ("No, she is not married.", "Is Ada married?"): "No, she is not married. | She is not here.",
    ("14 February", "When is Ada's birthday?"): "am 14.02.; 14.02.; am 14.2.; 14-го февраля "
     "| It costs 14.2.; am 15.02.; 14.02.3",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "prompt"), list(SENTENCES))
def test_codes_dates_and_lists_reveal_longer_answers(secret: str, prompt: str) -> None:
    own, others = (part.split("; ") for part in SENTENCES[secret, prompt].split("| "))
    missed = [text for text in own if text.strip() and not leaked(secret, text, prompt)]
    taken = [text for text in others if leaked(secret, text, prompt)]
    assert (missed, taken) == ([], [])


def test_a_code_or_date_of_other_texts_reveals_no_longer_answer() -> None:
    text = "The team of Ada Byron, in room {}, has used the key sk-4f9a8b7cQ2 since 12 May 1990."
    common = common_windows([text.format("seven of the old house")])
    for part in ("sk-4f9a8b7cQ2", "May 12, 1990"):
        assert leaked(text.format("nine"), part, "Key?")
        assert not leaked(text.format("nine"), part, "Key?", common)
