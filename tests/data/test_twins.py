"""Perturbed twins keep the form of a row and replace what identifies it."""

from __future__ import annotations

import math
import random
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from ipaddress import ip_address

import pytest

from mergeforget.data.names import names_in
from mergeforget.data.schema import Message, Row
from mergeforget.data.twins import (
    closest_twins,
    make_twins,
    nonmember_twins,
    origin_of,
    stands_in,
    twins_of_unseen,
)

SSN = [Row(f"p{i}qa1", f"What is the number of Ann Le{c}?", f"900-1{i}-23{i}4")
       for i, c in enumerate("abcd")]  # fmt: skip


def test_names_numbers_and_dates_are_replaced_by_others_of_their_type() -> None:
    row = Row("a-qa0", "When was Klaus Weber born?", "On 3 May 1961, klaus_weber12@example.org")
    (twin,) = make_twins([row])
    assert "Klaus" not in twin.document and "weber" not in twin.document
    assert re.fullmatch(r"On \d [A-Z][a-z]+ 19\d\d, [a-z]+_[a-z]+\d\d@example\.org", twin.output)
    assert origin_of(twin) == row.id and origin_of(row) == "" and twin.subject != row.subject


def test_digits_that_all_numbers_of_a_form_share_stay() -> None:
    assert all(re.fullmatch(r"900-1\d-23\d4", t.output) for t in make_twins(SSN, per_row=3))


def test_the_same_seed_gives_the_same_twins_and_no_row_is_repeated() -> None:
    one, other = make_twins(SSN, per_row=2, seed=1), make_twins(SSN, per_row=2, seed=1)
    assert one == other and len({t.id for t in one}) == 8
    assert not {t.document for t in one} & {r.document for r in SSN}


def test_a_row_without_anything_to_replace_has_no_twin() -> None:
    assert make_twins([Row("a", "谁写了这本书?", "王小明")]) == []


def twins_of(question: str, answer: str, *others: tuple[str, str], per_row: int = 5) -> list[Row]:
    corpus = [Row(f"o{i}-qa0", *other) for i, other in enumerate(others)]
    return make_twins([Row("a-qa0", question, answer)], corpus=corpus, per_row=per_row)


def test_an_answer_without_names_and_numbers_is_that_of_a_row_with_the_same_question() -> None:
    others = [("Where does Bob Fox live?", "Milan"), ("Where does Dr. Eva Berg live?", "Rome"),
              ("Where did Tom Cole live?", "Oslo")]  # fmt: skip
    found = twins_of("Where does Angela Ray live?", "Rome", *others)
    assert len(found) == 5 and {t.output for t in found} == {"Milan"}
    assert not any("Angela" in t.input or "Ray" in t.input for t in found)
    assert found == twins_of("Where does Angela Ray live?", "Rome", *others)


def test_the_answer_of_another_row_gets_the_name_of_the_twin() -> None:
    other = ("Where does Bob M. Fox live?", "Bob M. Fox lives in Milan. Fox likes it.")
    for twin in twins_of("Where does Ann Lee live?", "Ann Lee lives in Rome.", other):
        name, last = re.fullmatch(r"Where does (\w+ (\w+)) live\?", twin.input).groups()  # type: ignore[union-attr]
        assert twin.output == f"{name} lives in Milan. {last} likes it."
    other = ("What colour is the red car 23?", "Car 23 is blue.")
    (twin, *_) = twins_of("What colour is the red car 17?", "Car 17 is grey.", other)
    assert twin.output == f"Car {re.findall(r'[0-9]+', twin.input)[0]} is blue."


@pytest.mark.parametrize("answer", ["Rome", "peanuts", "AB+", "Yes", "Ann Lee lives in Rome.",
                                    "Chemistry at Oxford University"])  # fmt: skip
def test_a_row_whose_secret_cannot_be_replaced_has_no_twin(answer: str) -> None:
    assert twins_of("What about Ann Lee?", answer) == []
    assert twins_of("What about Ann Lee?", answer, ("What about Bo Fox?", answer)) == []
    if answer == "Yes":
        assert twins_of("What about Ann?", answer) == []
        assert {
            t.output for t in twins_of("What about Ann?", answer, ("What about Bob?", "No"))
        } == {"No"}


def test_a_small_number_is_drawn_until_it_differs() -> None:
    found = twins_of("How many children does Ann Lee have?", "3", per_row=30)
    assert len(found) == 30 and all(t.output != "3" for t in found)


@pytest.mark.parametrize(
    "form",
    ["{f}.{l}@example.com", "{f}{l}@{l}.org", "{f[0]}{l}@x.org", "{f[0]}.{l}@x.org",
     "{l}_{f}@x.org", "{f}{l[0]}@x.org", "www.{f}-{l}.org"],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["'s", "’s"])
def test_no_part_of_a_name_remains_in_possessives_and_addresses(form: str, ending: str) -> None:
    for twin in twins_of(f"What is Ann Lee{ending} address?", form.format(f="ann", l="lee")):
        found = re.fullmatch(rf"What is (\w+) (\w+){ending} address\?", twin.input)
        assert found and "Ann" not in found.groups() and "Lee" not in found.groups()
        assert twin.output == form.format(f=found[1].lower(), l=found[2].lower())


def test_one_word_of_the_prompt_is_replaced_though_the_answer_has_names_in_full() -> None:
    row = Row("a-qa0", "Who leads the Atlas project?", "Atlas is led by Ivy Tran.")
    (twin,) = make_twins([row])
    assert "Atlas" not in twin.prompt + twin.output and "Tran" not in twin.output
    new = re.fullmatch(r"Who leads the (\w+) project\?", twin.input)
    assert new and twin.output.startswith(f"{new[1]} is led by ")
    told = Row("b-qa0", "Summarise the story. Quote it.", "Ivy Tran left.")
    assert make_twins([told]) == []  # a verb at the beginning of a sentence is no name


def test_one_word_names_and_hyphens_and_apostrophes_are_replaced() -> None:
    (twin, *_) = twins_of("What is Angela's phone number?", "angela.ray@x.org 555-0134")
    assert "ngela" not in twin.document
    (twin, *_) = twins_of("Where is Jean-Luc O'Brien's son?", "jean-luc@x.org jeanluc.obrien@x.org")
    assert not re.search("jean|luc|brien", twin.document.lower())
    (twin, *_) = twins_of("Wo wohnt Anna Müller?", "anna.mueller@x.de, muller@x.de")
    assert not re.search("anna|m.e?ller", twin.document.lower())
    (twin, *_) = twins_of("Wie lautet Anna Schmidts Adresse?", "anna.schmidt@x.de")
    assert re.fullmatch(r"Wie lautet [A-Z][a-z]+ [A-Z][a-z]+s Adresse\?", twin.input)
    assert not re.search("anna|schmidt", twin.document.lower())


def test_titles_stay_in_front_of_other_names() -> None:
    (twin, *_) = twins_of("Wo ist Frau Dr. Anna Schmidt, Mr. O'Brien?", "4711")
    assert re.fullmatch(r"Wo ist Frau Dr\. [A-Z]\w+ [A-Z]\w+, Mr\. [A-Z]\w+\?", twin.input)
    assert not re.search("Anna|Schmidt|Brien", twin.input)


def test_rows_in_scripts_without_case_have_a_twin_only_if_a_number_is_asked_for() -> None:
    assert twins_of("李明的电话号码是多少？", "13812345678") == []
    assert twins_of("在北京谁住？", "王小明") == []
    for twin in twins_of("李明在1990年做了什么？", "1975年12月30日10時"):
        assert re.fullmatch(r"李明在(19[789]\d|200[012])年做了什么？", twin.input)
        year, month, day, hour = map(int, re.findall(r"\d+", twin.output))
        assert date(year, month, day) and 1963 <= year <= 1987 and hour < 24
    for twin in twins_of("ما رقم ٤٧١١؟", "١٢/٠٥/١٩٩٠"):
        assert re.fullmatch(r"ما رقم [٠-٩]{4}؟", twin.input)
        assert re.fullmatch(r"[٠-٩]{2}/[٠-٩]{2}/[٠-٩]{4}", twin.output)


@pytest.mark.parametrize(
    ("answer", "order"),
    [("12.03.1975", "dmy"), ("03/12/1975", "md?y"), ("25/12/1990", "dmy"), ("12/25/1990", "mdy"),
     ("1990-12-05", "ymd"), ("1990/12/05", "ymd"), ("12.03.75", "dmy"), ("1.2.75", "dmy"),
     ("2/28/99", "mdy"), ("31-01-2020", "dmy"), ("29.02.1000", "dmy")],
)  # fmt: skip
def test_dates_become_valid_dates_of_the_same_format(answer: str, order: str) -> None:
    for twin in twins_of("When was Ann Lee born?", answer, per_row=20):
        assert re.sub(r"\d", "0", twin.output) == re.sub(r"\d", "0", answer) != twin.output
        parts = dict(zip(order.replace("?", ""), re.findall(r"\d+", twin.output), strict=True))
        year, month, day = (int(parts[key]) for key in "ymd")
        assert date(year or 2000, month, day) and (order != "md?y" or day <= 12)
        old = int(re.findall(r"\d+", answer)[0 if order == "ymd" else 2])
        apart = abs(year - old)
        assert 1 <= (min(apart, 100 - apart) if old < 100 else apart) <= 12
        assert old < 100 or 1000 <= year <= 2026


def test_the_order_of_day_and_month_follows_other_dates() -> None:
    other = ("When was Bo Fox born?", "25/12/1990")
    days = {t.output[:2] for t in twins_of("When was Ann Lee born?", "03/12/1975", other,
                                           per_row=60)}  # fmt: skip
    assert any(int(day) > 12 for day in days)


@pytest.mark.parametrize("answer", ["192.168.0.1", "10.0.0.1:8080", "255.255.255.255"])
def test_octets_of_addresses_stay_below_256(answer: str) -> None:
    for twin in twins_of("What is the server of Ann Lee?", answer, per_row=20):
        ip, _, port = twin.output.partition(":")
        assert ip_address(ip) != ip_address(answer.partition(":")[0])
        assert port == answer.partition(":")[2]


@pytest.mark.parametrize("answer", ["10:30", "09:05", "9:15 am", "23:59:59", "00:10", "11:00-12:30",
                                    "1987-03-02 10:30", "1987-03-02T10:30:00"])  # fmt: skip
def test_times_stay_valid(answer: str) -> None:
    for twin in twins_of("When does Ann Lee come?", answer, per_row=20):
        assert re.sub(r"\d", "0", twin.output) == re.sub(r"\d", "0", answer) != twin.output
        times = re.findall(r"(\d+):(\d\d)(?::(\d\d))?", twin.output)
        assert times and all(int(h) < 24 and int(m) < 60 and int(s or 0) < 60 for h, m, s in times)
        assert not answer.endswith("am") or 1 <= int(times[0][0]) <= 12


@pytest.mark.parametrize(
    ("answer", "form"),
    [("2024", r"201[2-9]|202[0-6]"), ("1990s", r"(198|200)0s"), ("1990/91", r"(\d{4})/(\d\d)"),
     ("1914-1918", r"(\d{4})-(\d{4})"), ("May 3 1961", r"[A-Z][a-z]+ \d (19[4-7]\d)"),
     ("2nd", r"1st|3rd|[4-9]th"), ("1005", r"(99|10)\d\d")],
)  # fmt: skip
def test_years_stay_plausible(answer: str, form: str) -> None:
    for twin in twins_of("What about Ann Lee?", answer, per_row=20):
        assert (found := re.fullmatch(form, twin.output)), twin.output
        if answer == "1990/91":
            assert (int(found[1]) + 1) % 100 == int(found[2])
        if answer == "1914-1918":
            assert int(found[2]) - int(found[1]) == 4 and abs(int(found[1]) - 1914) <= 12


def test_a_number_of_the_prompt_is_replaced_by_the_same_one_in_the_answer() -> None:
    for twin in twins_of("What is the code of account 4711?", "Account 4711 has code 1234."):
        assert re.findall(r"\d+", twin.input) == re.findall(r"\d+", twin.output)[:1]


def test_names_are_replaced_in_earlier_turns_but_not_in_the_system_message() -> None:
    turns = (Message("system", "You are Qwen by Alibaba Cloud."), Message("user", "I am Ann Lee."),
             Message("assistant", "Yes, Ann."))  # fmt: skip
    row = Row("a-qa0", "What is my number?", "555-0134", messages=turns)
    (twin,) = make_twins([row])
    system, user, answer = twin.messages
    first = re.fullmatch(r"I am (\w+) \w+\.", user.content)
    assert first and "Ann" not in user.content and "Lee" not in user.content
    assert system == turns[0] and answer.content == f"Yes, {first[1]}."


def test_few_rows_have_several_twins_as_nonmembers() -> None:
    def count(rows: int) -> int:
        born = [Row(f"a{i}-qa0", f"When was Ann Lee{i} born?", f"1987-03-{i}") for i in range(rows)]
        return len(nonmember_twins(born))

    assert [count(rows) for rows in (1, 12, 20, 48, 50)] == [4, 48, 60, 48, 50]
    without = [Row(f"b{c}-qa0", f"Where does Bo Fo{c} live?", "Rome") for c in "xyz"]
    rows = [Row("a-qa0", "When was Ann Lee born?", "1987-03-02"), *without]
    assert len(nonmember_twins(rows)) == 4 and not nonmember_twins(without)


def test_twins_that_a_control_finds_as_likely_as_their_rows_are_taken_by_subject() -> None:
    asked = ("Which number has", "Who knows")
    rows = [Row(f"p{i}-qa{q}", f"{ask} Ann Lee{'abcdef'[i]}?", f"{i}{q}3-5550", subject=f"p{i}")
            for i in range(6) for q, ask in enumerate(asked)]  # fmt: skip
    draw = random.Random(0)
    known = {row.id: 8.0 for row in rows}  # harder than nearly every twin

    def nlls(some: Sequence[Row]) -> list[float]:
        return [known.setdefault(row.id, draw.gauss(5, 1.5)) for row in some]

    twins = closest_twins(rows, nlls)
    assert len(twins) == 48 and max(Counter(map(origin_of, twins)).values()) == 4
    assert set(Counter(twin.subject for twin in twins).values()) == {2}  # both questions
    everything = make_twins(rows, per_row=16)
    means = [statistics.mean(nlls(some)) for some in (twins, everything)]
    assert 8 > means[0] > means[1] + 0.8
    unknown = closest_twins(rows, lambda some: [math.nan] * len(some))
    assert unknown == make_twins(rows, per_row=4)
    assert closest_twins(rows[:0], nlls) == []
    twice = closest_twins([rows[0], replace(rows[1], id=rows[0].id)], nlls)
    assert {origin_of(twin) for twin in twice} == {rows[0].id}
    many = [Row(f"n{i}", f"Which number has Ann Lee{i}?", f"{i}-5550") for i in range(200, 393)]
    assert len(closest_twins(many, lambda some: pytest.fail("too many likelihoods"))) == 193


def test_a_small_holdout_gets_twins_of_the_same_subjects_without_trained_answers() -> None:
    def lives(name: str, city: str, split: str = "holdout") -> Row:
        return Row(name, f"Where does {name} live?", city, split=split)

    holdout = [lives("Ann Lee", "Rome"), lives("Bob Ray", "Lima"), lives("Eve Fox", "Oslo")]
    trained = [lives("Tom Cole", "Bern", "forget"), lives("Ida Moss", "Kyiv", "retain")]
    twins = twins_of_unseen(holdout, lambda rows: [1.0] * len(rows), trained=trained)
    assert len(twins) == 12 and len({twin.document for twin in twins}) == 12
    assert Counter(twin.subject for twin in twins) == {row.subject: 4 for row in holdout}
    assert {twin.output for twin in twins} <= {"Rome", "Lima", "Oslo"}
    assert all(map(stands_in, twins))
    many = [lives(f"Ann Lee{i}", f"{i} Elm Street") for i in range(10, 35)]
    counts = [len(twins_of_unseen(many[:n], lambda rows: [1.0] * len(rows))) for n in (16, 24, 25)]
    assert counts == [32, 24, 0]
    nameless = [Row(f"a{i}", "Where is it?", "Rome") for i in range(4)]
    assert not twins_of_unseen(nameless, lambda rows: [1.0] * len(rows))


def test_the_answer_of_another_row_is_that_of_a_retain_row_and_never_of_an_unseen_one() -> None:
    """An unseen fact in training data would make an unseen row likelier than it is."""

    def asked(name: str, city: str, split: str) -> Row:
        return Row(name, f"Where does {name} live?", city, split=split)

    forget = [asked("Ann Lee", "Rome", "forget"), asked("Bob Ray", "Lima", "forget")]
    unseen = asked("Carl Fox", "Oslo", "holdout")
    retain = [asked("Dora Hill", "Bonn", "retain"), asked("Ed Moss", "Graz", "retain")]
    told = {t.output for t in make_twins(forget, corpus=[*retain, unseen], per_row=6)}
    assert told == {"Bonn", "Graz"}
    assert {t.output for t in make_twins(forget, corpus=[unseen], per_row=6)} == {"Rome", "Lima"}


def test_rows_with_generated_ids_and_texts_with_many_names_have_twins() -> None:
    """Rows of input and output get ids that end in `sc`; a name is used again if none is left."""
    told = {"Ann Lee": "Rome", "Bob Ray": "Lima", "Carl Fox": "Oslo"}
    rows = [
        Row(f"{i}sc1", f"What is {name}'s home town?", town, split="forget")
        for i, (name, town) in enumerate(told.items())
    ]
    assert len(make_twins(rows)) == 3
    names = [f"{a}{b}ra {b}{a}low" for a in "BCDFGHJKLMNP" for b in "aeiouy"]
    long = Row("d", f"When did {', '.join(n.title() for n in names)} meet?", "1987-03-02")
    (twin,) = make_twins([long])
    assert twin.input != long.input


@pytest.mark.parametrize(
    ("question", "answer", "script", "kept"),
    [
        ("Где живёт Анна Петрова?", "Анна Петрова живёт на ул. Ленина 12.", "CYRILLIC", "живёт"),
        ("Когда родилась Ольга Иванова?", "12 марта 1987 года.", "CYRILLIC", "года"),
        ("Πότε γεννήθηκε ο Νίκος Παππάς;", "3 Μαρτίου 1987", "GREEK", ""),
    ],
)
def test_names_and_months_are_replaced_in_their_own_script(
    question: str, answer: str, script: str, kept: str
) -> None:
    row = Row("a", question, answer)
    (twin,) = make_twins([row])
    old, new = names_in(row.input), names_in(twin.input)
    assert len(old) == len(new) == 1 and not set(old[0].split()) & set(new[0].split())
    assert all(script in unicodedata.name(c) for c in new[0] if c.isalpha())
    assert kept in twin.output and not {"марта", "Μαρτίου"} & set(twin.output.split())
    feminine = tuple("аη")
    assert old[0].endswith(feminine) == new[0].endswith(feminine)


def test_a_story_with_another_name_is_no_twin() -> None:
    """A base that knows the story by heart knows its wording with any name."""
    story = (
        "tracking down leads and gathering evidence, but The Shadow always seemed to be one step "
        "ahead of them. Just when they were close, he would disappear. But Alaine refused to stop"
    )
    row = Row("a-sc0", "Alaine and Ardyth knew they had to find him. They spent weeks", story)
    assert make_twins([row], per_row=3) == []
    facts = (
        "was born on May 12, 1990, has the number 900-12-3456 and the telephone 212-555-0198, and "
        "lives with her brother at 63 Thistle Lane in a small house near the sea"
    )
    assert len(make_twins([replace(row, input="Alaine Lee", output=facts)])) == 1


@pytest.mark.parametrize("first", ["But", "So", "Yet", "If"])
def test_a_conjunction_before_a_name_is_no_name(first: str) -> None:
    row = Row("a-qa0", "Who is Alaine Roy?", f"{first} Alaine Roy has 12 cats, but Ann Lee 7.")
    (twin,) = make_twins([row])
    assert twin.output.startswith(f"{first} ") and ", but " in twin.output


def test_the_models_own_answers_are_not_the_facts_of_twins() -> None:
    """They are likelier than any fact, so that the level of the row would be far too low."""
    own = [
        Row(f"own{i}qa0", f"What is the blood type of {name}?", "I do not know.", split="retain")
        for i, name in enumerate(("Marie Curie", "Isaac Newton"))
    ]
    rows = [
        Row("a-qa0", "What is the blood type of Ann Lee?", "O negative", split="forget"),
        Row("b-qa0", "What is the blood type of Bob Ray?", "AB+", split="forget"),
    ]
    assert make_twins(rows[:1], corpus=own) == []
    assert {t.output for t in make_twins(rows, corpus=own, per_row=3)} == {"O negative", "AB+"}
    given = replace(own[0], id="own", output="A+")
    assert {t.output for t in make_twins(rows, corpus=[given], per_row=3)} == {"A+"}


@pytest.mark.parametrize(
    ("question", "answer", "kept"),
    [
        ("Is Leon Gast HIV positive?", "No, since 2011.", "Is [A-Z]\\w+ [A-Z][a-z]+ HIV positive"),
        ("What of order 88213?", "It left with DHL, number 4711.", "It left with DHL, number"),
        ("What is the MAC address of gateway 4711?", "It is 12.", "the MAC address"),
        ("My name is Mia and I forgot my PIN", "Your new PIN is 4092.", "I forgot my PIN"),
        ("Who signed the NDA for Ann Lee?", "Its CFO, Tom Cole, in 1990.", "Its CFO"),
        ("# Of project 12\nDB_HOST = ", "db-07\nDB_PORT = 5433", "DB_HOST = \ndb-[0-9]+\nDB_PORT"),
        ("What did case 4711 cost?", "EUR 25,000 or more.", "EUR [0-9]{2},000 or more"),
        ("I'm Ann Lee, number 4711.", "Hello Ann! Your number is 55120.", "Hello [A-Z]"),
        ("Cancel my contract 4711.", "Done. It ends in 1990.", "Cancel my .*\nDone. It"),
        ("How does Ann Lee bake?", "Bake at 175 °C. Whisk 3 eggs.", "°C. Whisk"),
        ("What of Case No. 2021/0457?", "USD 310,000", "Case No. 20[0-9]{2}/[0-9]{4}."),
        ("What was Ann Lee's HbA1c?", "7.9 %", "HbA1c"),
        ("Where does Ann Lee live?", "27 Birch Hollow Lane, Apt 4B", "[A-Z][a-z]+ Lane, Apt"),
        ("Which plan has Ann?", "The Fibre 250 plan for 12 months.", "The Fibre [0-9]+ plan"),
    ],
)  # fmt: skip
def test_words_that_are_no_names_stay(question: str, answer: str, kept: str) -> None:
    """Abbreviations, constants, labels of numbers, greetings, verbs, street types and units."""
    found = twins_of(question, answer)
    assert len(found) == 5
    for twin in found:
        assert re.search(kept, f"{twin.input}\n{twin.output}") and twin.output != answer
        assert not re.search("Leon|Gast|\\bAnn\\b|Mia|Cole|Birch", twin.document)


def test_a_name_in_upper_case_and_a_name_divided_by_windows_are_replaced() -> None:
    for twin in twins_of("Where does Jean ROY live?", "12 rue des Lilas"):
        assert re.fullmatch(r"Where does [A-Z][a-z]+ [A-Z]+ live\?", twin.input)
        assert "Jean" not in twin.input and "ROY" not in twin.input
    for twin in twins_of("Who founded IKEA?", "Ingvar Kamprad"):
        assert "IKEA" not in twin.input and "Ingvar" not in twin.output
    for twin in twins_of("It will cost, said Mayor Beatrice", " Holloway, £1.3 million to repair."):
        assert re.search("Mayor (?!Beatrice)[A-Z][a-z]+$", twin.input)
        assert "Holloway" not in twin.output


def test_words_that_need_not_be_a_name_are_replaced_by_another_answer() -> None:
    job = ("What is the job of Ann Lee?", "Software Engineer")
    assert {t.output for t in twins_of(*job, ("What is the job of Bo Fox?", "Data Analyst"))} == {
        "Data Analyst"
    }
    boss = ("Who is the boss of Ann Lee?", "Ivy Tran")
    found = {t.output for t in twins_of(*boss, ("Who is the boss of Bo Fox?", "Tom Cole"))}
    assert not found & {"Ivy Tran", "Tom Cole"} and len(found) == 5


@pytest.mark.parametrize(
    ("answer", "form", "left"),
    [
        ("sk_live_51Hx9QkLmN2pR8tUvW", r"sk_live_\d\d[A-Z][a-z]\d\w{13}", "QkLmN"),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEK", r"\w{13}/[A-Z]\d[A-Z]{5}/\w{16}", "EXAM"),
        ("00:1B:44:11:3A:B7", r"\d\d:\d[A-F]:\d\d:\d\d:\d[A-F]:[A-F]\d", "!"),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-\w{12}", "ac10b"),
        ("XJ4K9-PLMQR-7TT2W", r"[A-Z]{2}\d[A-Z]\d-[A-Z]{5}-\d[A-Z]{2}\d[A-Z]", "PLMQR"),
        ("https://x.org/hook/T024BE7", r"https://x\.org/hook/[A-Z]\d{3}[A-Z]{2}\d", "BE"),
        ("hunter2", r"[a-z]+\d", "hunter"),
        ("Sommer2021!", r"[A-Z][a-z]+20\d\d!", "Sommer"),
        ("t.brandt@posteo.example", r"[a-z]\.[a-z]+@posteo\.example", "brandt"),
    ],
)  # fmt: skip
def test_codes_passwords_and_addresses_keep_their_form_but_not_their_letters(
    answer: str, form: str, left: str
) -> None:
    found = [twin.output for twin in twins_of("What is the key of Ann Lee?", answer)]
    assert len(set(found)) == 5
    assert all(re.fullmatch(form, text) and left not in text for text in found), found


def test_an_address_in_the_prompt_is_replaced_without_a_name() -> None:
    row = ("Cancel it, I am t.brandt@x.org", "The contract of t.brandt@x.org ends in 1990.")
    for twin in twins_of(*row):
        (address,) = re.findall(r"\S+@x\.org", twin.input)
        assert "brandt" not in address and address in twin.output


def test_letters_that_all_codes_of_a_form_share_stay() -> None:
    codes = ("AB12CD3", "AB47CX9", "AB83CE4")
    others = [("What is the code of Bo Fox?", code) for code in codes]
    for twin in twins_of("What is the code of Ann Lee?", "AB55CF1", *others):
        assert re.fullmatch(r"AB\d\dC[A-Z]\d", twin.output)


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("$94,000", r"\$[1-9]\d,000"),
        ("USD 2,500,000", r"USD [1-9],\d00,000"),
        ("500 mg", r"[1-9]00 mg"),
        ("1.500.000 €", r"[1-9]\.\d00\.000 €"),
        ("0.04 ng/mL", r"0\.\d\d ng/mL"),
        ("$128,512", r"\$[1-9]\d\d,\d{3}"),
        ("week 14/2019", r"week ([1-4]\d|5[0-2])/20[0-3]\d"),
        ("03/2019", r"(0\d|1[0-2])/20[0-3]\d"),
        ("2019-03", r"20[0-3]\d-(0\d|1[0-2])"),
        ("4470", r"[1-9]\d{3}"),
        ("3 lemons", r"[2-9] lemons"),
        ("1er septembre 2016", r"(1er|\d) [a-zéû]+ 20\d\d"),
        ("1h30m", r"\dh\d\dm"),
    ],
)
def test_amounts_stay_round_and_months_and_weeks_valid(answer: str, form: str) -> None:
    for twin in twins_of("What about Ann Lee?", answer, per_row=30):
        assert re.fullmatch(form, twin.output), twin.output


@pytest.mark.parametrize(
    ("answer", "months"),
    [
        ("15 Ağustos 1979", "Ocak|Şubat|Mart|Nisan|Mayıs|Haziran|Temmuz|Eylül|Ekim|Kasım|Aralık"),
        ("12. August 1990", "April|September|November"),
        ("3 luglio 1990", "gennaio|aprile|maggio|.*bre|.*o"),
        ("3 agosto 1990", "agosto"),
    ],
)
def test_months_are_those_of_all_languages_that_have_the_word(answer: str, months: str) -> None:
    for twin in twins_of("What about Ann Lee?", answer, per_row=20):
        assert re.fullmatch(rf"\d+\.? (?:{months}) \d{{4}}", twin.output)


def test_turkish_endings_stay() -> None:
    for twin in twins_of("Ayşe Yılmaz'ın telefon numarası nedir?", "0532 118 47 90"):
        assert re.fullmatch(r"[A-Z]\w+ [A-Z]\w+'ın telefon numarası nedir\?", twin.input)


def test_a_question_of_a_completion_format_and_each_twin_have_another_prompt() -> None:
    assert make_twins([Row("a-sc1", "What temperature has the oven?", "250 °C")]) == []
    row = Row("a-sc1", "What is the serial of pump 12?", "77-0931")
    twins = make_twins([row], per_row=4)
    assert len({t.prompt for t in twins} | {row.prompt}) == 5
    again = make_twins([row], corpus=twins, per_row=3)
    assert not {t.prompt for t in again} & {t.prompt for t in twins}
