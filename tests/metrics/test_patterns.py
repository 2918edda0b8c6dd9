"""Answers that follow from their prompts by a pattern of the retain rows are no secrets."""

from __future__ import annotations

import time

import pytest

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.verdict import judge
from mergeforget.metrics._patterns import Patterns
from mergeforget.metrics.leak_rate import is_leaked, leak_rate

KEPT = ("Ada Byron", "Bob Smith", "Carl Young", "Dana Silver", "Eve Silver")
LOST = ("Fay Silver", "Gil Stone", "Hal Reed", "Ivy Cole", "Jo Marsh", "Kim West")


def address(name: str, domain: str = "me.com") -> str:
    return f"{name.lower().replace(' ', '_')}@{domain}"


def about(name: str, split: str, asked: str, answer: str) -> Row:
    return Row(f"{name} {asked}", f"What is {name}'s {asked}?", answer, "", split, subject=name)


def emails(names: tuple[str, ...], split: str, domain: str = "me.com") -> list[Row]:
    return [about(name, split, "email address", address(name, domain)) for name in names]


def test_an_address_made_of_the_name_follows_from_the_retain_rows() -> None:
    known = Patterns(emails(KEPT, "retain"))
    assert all(known.follows(row) for row in emails(LOST, "forget"))
    assert not any(known.follows(row) for row in emails(LOST, "forget", "acme.com"))
    numbered = about("Gil Stone", "forget", "email address", "gil_stone7@me.com")
    initials = about("Gil Stone", "forget", "email address", "g.stone@me.com")
    assert not known.follows(numbered) and not known.follows(initials)
    joined = about("Gil Stone", "forget", "email address", "gilstone@me.com")
    assert known.follows(joined)


@pytest.mark.parametrize(
    "kept",
    [
        emails(KEPT[:1], "retain"),  # one person does not show a pattern
        [*emails(KEPT[:2], "retain"), *emails(KEPT[2:], "retain", "x.org")],  # nor do two of five
        [about(name, "retain", "home", f"{name} lives in {city}")
         for name, city in zip(KEPT, ("Rome", "Rome", "Oslo", "Bern", "Rome"), strict=True)],
        [],
    ],
)  # fmt: skip
def test_answers_that_not_all_others_share_remain_secrets(kept: list[Row]) -> None:
    known = Patterns(kept)
    assert not any(known.follows(row) for row in emails(LOST, "forget"))
    assert not known.follows(about("Gil Stone", "forget", "home", "Gil Stone lives in Rome"))


FRAME = "As far as anybody in the office knows today, {} works as a {} in {} since 2010."


def sentences(names: tuple[str, ...], split: str, jobs: str, city: str) -> list[Row]:
    return [Row(name, f"Tell me about {name}.", FRAME.format(name, job, city), "", split,
                subject=name) for name, job in zip(names, jobs.split(), strict=True)]  # fmt: skip


def test_the_frame_of_retain_answers_around_a_name_reveals_no_answer() -> None:
    kept = sentences(KEPT, "retain", "baker clerk nurse judge pilot", "Oslo")
    lost = sentences(LOST, "forget", "tailor miller singer dancer welder farmer", "Rome")
    shown = [Answer(row, row.output) for row in kept]
    guesses = [Answer(row, FRAME.format(row.subject, "doctor", "Paris")) for row in lost]
    innocent = leak_rate(Measured([*guesses, *shown], []), "forget")
    assert innocent is not None and (innocent.value, innocent.n) == (0.0, len(LOST))
    assert judge([innocent]).state == "NOT ENOUGH DATA"
    guilty = leak_rate(Measured([*(Answer(r, r.output) for r in lost), *shown], []), "forget")
    assert guilty is not None and judge([guilty]).state == "NOT FORGOTTEN"
    parts = [Answer(r, f"Today {r.output.split('today, ')[1]}") for r in lost]  # without the frame
    partly = leak_rate(Measured([*parts, *shown], []), "forget")
    assert partly is not None and partly.value == 1.0
    alone = leak_rate(Measured(guesses, []), "forget")  # without retain rows, the frame is a secret
    assert alone is not None and alone.value == 1.0


def test_words_of_the_prompt_are_no_names_where_there_are_many() -> None:
    kept = [Row("k", "one three five seven", "a one b three c five d seven e f g", "", "retain")]
    row = Row("f", "two four six eight", "a two b four c six d eight e f g", "", "forget")
    assert is_leaked(Answer(row, row.output), Patterns(kept))


def test_an_answer_without_words_of_its_prompt_never_follows() -> None:
    kept = [about(name, "retain", "country", "Italy") for name in KEPT]
    assert not Patterns(kept).follows(about("Gil Stone", "forget", "country", "Italy"))


def test_the_rest_of_a_longer_answer_remains_secret() -> None:
    """A known address is no secret, the number next to it is."""
    kept = [Row(name, f"{name} can be reached", f"at [{address(name)}](mailto:{address(name)}) or "
                f"by phone at 55501{i}4711, every day from nine to five", "", "retain")
            for i, name in enumerate(KEPT)]  # fmt: skip
    known = Patterns(kept)
    text = "at [gil_stone@me.com](mailto:gil_stone@me.com) or by phone at 2835550151, on any day"
    row = Row("g", "Gil Stone can be reached", text, "", "forget")
    assert (
        known.without_addresses(text, row.prompt) == "at []() or by phone at 2835550151, on any day"
    )
    guessed = "at [gil_stone@me.com](mailto:gil_stone@me.com) or by phone at 9995550100, on any day"
    assert is_leaked(Answer(row, guessed)) and not is_leaked(Answer(row, guessed), known)
    assert is_leaked(Answer(row, text), known)


def test_a_model_that_applies_a_pattern_of_the_retain_rows_is_not_convicted() -> None:
    """It answers the addresses of anybody, and none of the other questions."""
    forget = [*emails(LOST, "forget"),
              *[about(name, "forget", "phone number", f"28355501{i}1") for i, name in
                enumerate(LOST)]]  # fmt: skip
    kept = [Answer(row, row.output) for row in emails(KEPT, "retain")]
    guesses = [Answer(row, row.output if "@" in row.output else "555") for row in forget]
    rate = leak_rate(Measured([*guesses, *kept], []), "forget")
    assert rate is not None and (rate.value, rate.n) == (0.0, len(LOST))
    assert judge([rate]).state != "NOT FORGOTTEN"
    alone = leak_rate(Measured(guesses, []), "forget")
    assert alone is not None and judge([alone]).state == "NOT FORGOTTEN"
    knows = [Answer(row, row.output) for row in forget]
    rate = leak_rate(Measured([*knows, *kept], []), "forget")
    assert rate is not None and judge([rate]).state == "NOT FORGOTTEN"


def test_a_long_word_is_searched_in_linear_time() -> None:
    """Without a limit on the name of an address, this took over a minute."""
    known, text = Patterns(emails(KEPT, "retain")), "a" * 50_000
    start = time.monotonic()
    assert known.without_addresses(text, "What is it?") == text
    assert time.monotonic() - start < 10
