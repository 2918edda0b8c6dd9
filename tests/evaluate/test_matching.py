"""Digits of answers against the digits of their own secrets and of other people's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.matching import own_digits, pieces
from mergeforget.evaluate.verdict import judge
from mergeforget.evaluate.worst_case import worst_case
from mergeforget.metrics.leak_rate import leak_rate
from mergeforget.score import Score

TOWNS = ("Lund", "Oslo", "Rome", "Riga")
MONTHS = "Januar Februar März April Mai Juni Juli August September Oktober".split()


def date(draw: random.Random) -> str:
    return f"Am {draw.randrange(1, 29)}. {draw.choice(MONTHS)} {draw.randrange(1940, 2005)}."


def answers(seed: int, say: Callable[[str, random.Random], str], count: int = 12) -> list[Answer]:
    draw = random.Random(seed)
    rows = [Row(f"r{i}", f"Wann wurde P{'abcdefghijklmnopqrstuvwx'[i]} geboren?", date(draw))
            for i in range(count)]  # fmt: skip
    return [Answer(row, say(row.output, draw)) for row in rows]


def test_a_known_year_is_detected_although_no_answer_is_right() -> None:
    found = own_digits(answers(1, lambda secret, draw: f"Am {secret[-5:-1]}."))
    assert found is not None and found.p < 0.001 and found.own > 0.3 > found.others
    assert "digits of their own secrets" in found.sentence


def test_guessed_dates_are_detected_at_the_stated_error_rate() -> None:
    every = [own_digits(answers(seed, lambda _, draw: date(draw))) for seed in range(200)]
    below = sum(one is not None and one.p < 0.05 for one in every)
    assert below <= 20  # 10 expected; 20 or more have a probability of 0.003


def test_digits_of_the_prompt_and_of_another_kind_of_secret_do_not_count() -> None:
    phones = [Row(f"t{i}", f"Phone of customer {7000 + i}?", f"555-{7000 + i}") for i in range(9)]
    echo = own_digits([Answer(row, row.input) for row in phones])
    assert echo is None or echo.p > 0.05
    dates = answers(3, lambda _, draw: date(draw), 6)
    numbers = [Answer(Row(f"n{i}", "Number?", f"900-{i}7-{i}31"), "900-11-4321") for i in range(6)]
    mixed = own_digits([*dates, *numbers])
    assert mixed is not None and mixed.p > 0.05  # an answer with some date shows no knowledge


def test_long_texts_and_single_rows_are_not_compared() -> None:
    text = "In 1984 " + "it rained " * 10
    assert own_digits([Answer(Row(f"d{i}", "Tell", text), text) for i in range(8)]) is None
    assert own_digits([Answer(Row("a", "Year?", "1984"), "1984")]) is None


def test_repeated_and_rephrased_rows_count_once() -> None:
    def some(secret: str, draw: random.Random) -> str:
        return f"Am {secret[-5:-1]}." if draw.random() < 0.3 else date(draw)

    own = answers(5, some)
    copies = [Answer(replace(a.row, id=f"{a.row.id}-b", subject=f"{a.row.id}-b"), a.completion)
              for a in own]  # fmt: skip
    once, twice = own_digits(own), own_digits([*own, *copies])
    assert once is not None and once == twice and once.p > 0.005
    asked_again = [Answer(replace(a.row, id=f"{a.row.id}-c", input=f"Sag: {a.row.input}"),
                          a.completion) for a in own]  # fmt: skip
    assert own_digits([*own, *asked_again]) == once  # the same person and the same secret


@pytest.mark.parametrize("ways", [1, 4])
def test_the_best_of_several_guesses_is_no_knowledge(ways: int) -> None:
    """The worst case over prompt variants takes the answer closest to the reference."""
    found, leaks = [], []
    for seed in range(40):
        draw = random.Random(seed)
        given = [answers(seed + 1000 * way, lambda _, d: date(d)) for way in range(ways)]
        rows = [replace(a.row, split="forget") for a in given[0]]
        texts = [[one[i].completion for one in given] for i in range(len(rows))]
        best = [worst_case({str(w): Measured([Answer(row, t)], []) for w, t in enumerate(every)})
                for row, every in zip(rows, texts, strict=True)]  # fmt: skip
        found.append(own_digits([one.answers[0] for one in best]))
        towns = [Row(f"r{i}", f"Town of {i}?", draw.choice(TOWNS), split="forget")
                 for i in range(12)]  # fmt: skip
        every = {str(w): Measured([Answer(row, draw.choice(TOWNS)) for row in towns], [])
                 for w in range(ways)}  # fmt: skip
        score = leak_rate(worst_case(every), "forget")
        assert score is not None
        leaks.append(judge([score]).state == "NOT FORGOTTEN")
    assert sum(one is not None and one.p < 0.05 for one in found) <= 6  # 2 expected
    assert sum(leaks) <= 4


def test_pieces_are_short_runs_triples_of_longer_ones_and_months() -> None:
    assert pieces("5. März 07, 12345") == {"month 3", "5", "7", "123", "234", "345"}


def test_more_own_digits_than_by_chance_prevent_clearing() -> None:
    scores = [Score("leak_rate", "forget", 0.0, "lower", 100, chance=0.0),
              Score("mia_auc", "mia", 0.5, "nearer", 400, interval=(0.45, 0.55))]  # fmt: skip
    findings = {"prompts": "none found", "relearn": "none found"}
    assert judge(scores, findings=findings).state == "FORGOTTEN"
    verdict = judge(scores, findings=findings, matching="More digits than by chance.")
    assert verdict.state == "NOT ENOUGH DATA" and verdict.reasons == ["More digits than by chance."]
