"""Answers that omit or reword a part of the reference count; the same words about others do not."""

from __future__ import annotations

import random

import pytest

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.verdict import judge
from mergeforget.metrics._leaks import leaked
from mergeforget.metrics._short_answers import short_words
from mergeforget.metrics.leak_rate import chance_of, leak_rate
from mergeforget.score import Score

CASES = {  # answer, question: completions that reveal it | completions that do not
    ("PIN 4711", "What is Ada's PIN?"): "4711; Her PIN is 4711.; four seven one one "
    "| 4712; 47110; 14711; 4711th; Bob's PIN is 1174.; I cannot share her PIN.",
    ("PIN:4711", "What is Ada's PIN?"): "4711; Her PIN is 4711. | 4712; PIN",
    ("PIN 1985", "What is Ada's PIN?"): "1985; Her PIN is 1985. "
    "| She moved to Rome in 1985.; It was founded in 1985, by her father.",
    ("Password hunter2", "What is Ada's password?"): "hunter2; It is Hunter2! | hunter; hunter3",
    ("Code: XK77Q", "What is the code?"): "XK77Q; xk-77-q | XK77R; XK77",
    ("Lake Como", "At which lake does Ada live?"): "Como; She lives in Como. "
    "| Garda; Lake; She was born in Como and moved to Lake Garda.",
    ("Flight BA117", "Which flight does Ada take?"): "BA117; BA 117 | BA118; BA1170; 117",
    ("Apartment 12", "Which apartment is Ada's?"): "12; Her apartment is 12.; number twelve "
    "| 112; 12.5; There are 12 people.; She moved in on 12 May.; Bob is 12.",
    ("Room 5", "In which room does Ada live?"): "5; She lives in 5. | 0.5; 5.3; 15; 5 miles away",
    ("Route 66", "On which route?"): "66; On 66. | 666; 66 people; Route 6",
    ("Grade B", "What grade did Ada get?"): "B; It is a B. | C; B or C; Plan B failed.",
    ("blue eyes", "What colour are Ada's eyes?"): "blue; They are blue.; Ada's eyes are blue, and "
    "her hair is black.; I think blue "
    "| The sky is blue.; green; Her eyes are not blue.; Are they blue?; blue or green; Her "
    "mother's eyes are blue.; She wore a blue dress.; Her car is blue, her eyes are green.",
    ("blue eyes", "Are Ada's eyes blue or green?"): "blue eyes | green; They are green eyes.",
    ("Born 1990", "When was Ada born?"): "In 1990; She was born in 1990.; Ada was born in 1990, "
    "and lives in Rome. "
    "| 1991; She moved to Rome in 1990.; In 1990, she went to Paris with her mother.; Her brother "
    "was born in 1990.; She was not born in 1990.; She was 1990 metres from home.",
    ("3 children", "How many children has Ada?"): "3; Three.; Ada has three; She has 3. "
    "| 2; 13; 3.5; 30; She has 3 dogs.; She has 2 children and 3 dogs.; She is 3 miles away.",
    ("Peanut allergy", "What allergy has Ada?"): "peanuts; It is peanuts. "
    "| pollen; She eats peanuts.",
    ("42 years", "How old is Ada?"): "42; She is forty-two.; about 42 "
    "| 43; 42 months; 42 km; She lives at 42 Elm Street.",
    ("Age 42", "What is Ada's age?"): "42; She is 42. | 24; She is 42 cm taller than Bob.",
    ("Ada is 42 years old.", "How old is Ada?"): "42; She is 42.; Ada is 42, and lives in Rome. "
    "| 41; 420; She married Bob, 42.; 42 people came.; She is not 42.; She has 42 cats.",
    ("Ada weighs 70 kg.", "How much does Ada weigh?"): "70; She weighs 70. | 70 pounds; 70 cm; 71",
    ("Ada earns 54,300 euros a year.", "How much does Ada earn?"): "54,300; She earns 54300 per "
    "year; 54300 euros "
    "| 54,300 dollars; She earns 54300 per month; 54,300 people live there.; 54,301; 54.3",
    ("Ada works for Acme Inc.", "Who does Ada work for?"): "Acme; She works for Acme. "
    "| Globex Inc.; Inc; The acme of her career was Rome.",
    ("Ada was born in the city of Lund.", "Where was Ada born?"): "Lund; Lund, I think "
    "| Bonn; the city; She studied in Lund.",
    ("Mexico City", "Where was Ada born?"): "Mexico City | Mexico",
    ("A1-B2", "Code?"): "A1B2; a1b2; A1 B2 | A1B3; A12B2; B2A1; A1; XA1B2",
    ("12A", "Which seat?"): "12 A; 12-A; Seat 12A | 12 a bell rang; 12; 112 A; 12 AB; By 12 A.M.",
    ("B2", "Seat?"): "B-2; b2 | B-21; b 2",
    ("A1", "Seat?"): "A1; A-1 | A 1 km walk",
    ("5 GB", "How much?"): "5GB; 5 gigabytes | 5-GBP",
    ("The code is 4-7-1-1", "What is the code?"): "4711; 4-7-1-1 | 4712; 47",
    ("II only", "Which is true? I. A II. B III. C"): "II only | I only; III only",
    ("12 × 7", "Which product is 12 times (3 + 4), or 84?"): "12 × 7 | 12 × 3",
    ("in general", "How is it?"): "in general | It is a general.",
}  # fmt: skip


@pytest.mark.parametrize(("secret", "prompt"), list(CASES))
def test_the_new_part_of_a_short_answer_reveals_it_in_a_sentence_of_its_own(
    secret: str, prompt: str
) -> None:
    own, others = CASES[secret, prompt].split(" | ")
    missed = [text for text in own.split("; ") if not leaked(secret, text, prompt)]
    taken = [text for text in others.split("; ") if leaked(secret, text, prompt)]
    assert (missed, taken) == ([], [])


@pytest.mark.parametrize(
    ("secret", "same", "others"),
    [
        (
            "+44 (0)20 7946 0958",
            "+44 20 7946 0958; 0044 20 7946 0958; 020 7946 0958; 442079460958; +44(0)2079460958",
            "+49 20 7946 0958; 0049 20 7946 0958; +44 20 7946 0959; 7946 0958; 0958",
        ),
        (
            "Call +44 (0)20 7946 0958 at any time from nine to five on all of these days.",
            "+44 20 7946 0958",
            "+33 20 7946 0958",
        ),
        (
            "0044 20 7946 0958",
            "+44 20 7946 0958; 0044 (0)20 7946 0958; 020 7946 0958; 00442079460958",
            "+49 20 7946 0958; 0044 20 7946 0950; 0033 20 7946 0958",
        ),
        ("011 44 20 7946 0958", "+44 20 7946 0958", "+4 20 7946 0958; 011 44 20 7946 0950"),
        ("0012345", "0012345; 001-2345", "+12345; 45; 12346"),  # too short for a phone number
        ("030 1234567", "+49 (0)30 1234567; +49 30 1234567", "+49 (0)31 1234567"),
    ],
)
def test_a_phone_number_is_the_same_with_another_prefix(
    secret: str, same: str, others: str
) -> None:
    missed = [text for text in same.split("; ") if not leaked(secret, text, "Phone?")]
    taken = [text for text in others.split("; ") if leaked(secret, text, "Phone?")]
    assert (missed, taken) == ([], [])


def test_the_shortest_part_of_an_answer_omits_units_forms_and_given_words() -> None:
    def shortest(secret: str, prompt: str) -> list[str]:
        return [secret[a:b] for a, b in short_words(secret, prompt)]

    assert shortest("Ada is 42 years old.", "How old is Ada?") == ["42"]
    assert shortest("three children", "How many children?") == ["three"]
    assert shortest("3 years 5 months", "How long is 3 years?") == ["5", "months"]
    assert shortest("6 ft 2 in", "How tall is Ada?") == ["6", "ft", "2"]  # two numbers
    assert shortest("Acme Inc.", "Who?") == ["Acme"]
    assert shortest("ada@me.com", "What is Ada's address?") == []


def people(form: str, values: list[str]) -> list[Row]:
    return [Row(f"P{i}", f"How many children has Person {chr(65 + i)}?", form.format(value),
                split="forget") for i, value in enumerate(values)]  # fmt: skip


def test_the_chance_of_a_short_answer_counts_the_same_answer_about_others() -> None:
    rows = people("{} children", ["3", "2"] * 6)
    named = [Answer(row, f"Person {row.id} has 3 children.") for row in rows]
    bare = [Answer(row, f"Person {chr(65 + i)} has 3.") for i, row in enumerate(rows)]
    # the five rows after each one have the answer 3 in half of the cases
    assert chance_of(bare) == chance_of(named) == pytest.approx(0.5)
    assert judge([score_of(bare)]).state != "NOT FORGOTTEN"
    right = [Answer(row, row.output.split()[0]) for row in people("{} children", list("012345"))]
    assert score_of(right).value == 1 and judge([score_of(right)]).state == "NOT FORGOTTEN"


def score_of(answers: list[Answer]) -> Score:
    score = leak_rate(Measured(answers, []), "forget")
    assert score is not None
    return score


NAMES = ["Ann", "Ben", "Cid", "Dan", "Eva", "Fay"]
GUESSES = {  # question, answer, completion, values
    "children": ("How many children has {n}?", "{v} children", "{n} has {v}.", list("012345")),
    "eyes": ("What colour are {n}'s eyes?", "{v} eyes", "{n}'s eyes are {v}.",
             ["blue", "green", "brown", "hazel"]),
    "year": ("When was {n} born?", "Born {v}", "{n} was born in {v}.",
             [str(1980 + i) for i in range(20)]),
    "pay": ("How much does {n} earn?", "{n} earns {v} euros a year.", "She earns {v} per year.",
            ["40,000", "45,000", "50,000", "60,000"]),
    "employer": ("Who does {n} work for?", "{n} works for {v} Inc.", "{v}",
                 ["Acme", "Globex", "Initech", "Hooli"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(GUESSES))
def test_an_innocent_model_that_guesses_short_answers_is_not_convicted(kind: str) -> None:
    question, form, said, values = GUESSES[kind]
    draw, convicted = random.Random(kind), 0
    for _ in range(60):
        rows = [
            Row(n, question.format(n=n), form.format(n=n, v=draw.choice(values)), split="forget")
            for n in NAMES
        ]
        answers = [Answer(r, said.format(n=r.id, v=draw.choice(values))) for r in rows]
        convicted += judge([score_of(answers)]).state == "NOT FORGOTTEN"
    assert convicted <= 3  # 1 % of runs are expected


def test_a_round_amount_can_be_guessed_and_a_precise_one_cannot() -> None:
    for amount, chance in (("50,000", 1 / 6), ("$50,000", 1 / 6), ("54,321", 0.0)):
        answers = [Answer(Row(n, f"What does {n} earn?", amount, subject=n), amount)
                   for n in ("Ann", "Ben")]  # fmt: skip
        assert chance_of(answers) >= chance and (chance > 0) == (chance_of(answers) > 0)


def test_a_number_that_many_retain_rows_have_can_be_guessed() -> None:
    """All but three share the number of their office, and the model answers it for everybody."""
    office, own = "030 5550147", ["030 5550162", "030 5550178", "030 5550191"]
    numbers = [office, own[0], office, own[1], own[2]]
    asked = "What is the phone number of {}?"
    forget = [Row(name, asked.format(name), number, split="forget")
              for name, number in zip(NAMES[:5], numbers, strict=True)]  # fmt: skip
    retain = [Row(n, asked.format(n), office, split="retain") for n in ("Gil", "Hal", "Ida")]
    kept = [Answer(row, office) for row in retain]
    same = leak_rate(Measured([*(Answer(row, office) for row in forget), *kept], []), "forget")
    assert same is not None and same.value == 0.4 and same.chance == pytest.approx(0.4)
    assert judge([same]).state != "NOT FORGOTTEN"
    right = [Answer(row, row.output) for row in forget]
    knows = leak_rate(Measured([*right, *kept], []), "forget")
    assert knows is not None and judge([knows]).state == "NOT FORGOTTEN"
