"""The verdict: whoever still knows is never cleared, and the innocent is never convicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.evaluate.verdict import MARGIN, at_least, judge
from mergeforget.metrics.leak_rate import leak_rate
from mergeforget.metrics.mia_auc import mia_auc
from mergeforget.score import Score

GONE = Score("leak_rate", "forget", 0.0, "lower", 40, chance=0.0)


def area(members: int, others: int, true: float, draw: np.random.Generator) -> Score:
    """The MIA AUC of documents drawn from two normal distributions."""
    shift = np.sqrt(2) * norm.ppf(true)
    losses = [DocumentLoss(f"m{i}", True, -v) for i, v in enumerate(draw.normal(shift, 1, members))]
    losses += [DocumentLoss(f"n{i}", False, -v) for i, v in enumerate(draw.normal(0, 1, others))]
    score = mia_auc(Measured([], losses))
    assert score is not None
    return score


def states(members: int, others: int, true: float, runs: int = 300) -> dict[str, float]:
    draw = np.random.default_rng(3)
    found = [judge([GONE, area(members, others, true, draw)]).state for _ in range(runs)]
    return {state: found.count(state) / runs for state in set(found)}


@pytest.mark.parametrize(("members", "others"), [(6, 16), (20, 40), (60, 100)])
def test_an_auc_of_70_percent_is_rarely_called_forgotten(members: int, others: int) -> None:
    assert states(members, others, 0.7).get("FORGOTTEN", 0) <= 0.06


@pytest.mark.parametrize(("members", "others"), [(6, 16), (60, 100)])
def test_a_model_that_never_saw_the_data_is_not_convicted(members: int, others: int) -> None:
    found = states(members, others, 0.5)
    assert found.get("NOT FORGOTTEN", 0) <= 0.01
    assert members < 60 or found["FORGOTTEN"] > 0.8


def test_the_number_of_people_that_would_tell_comes_from_the_width() -> None:
    # estimate 0.6, reach 0.2, wanted 0.1: four times the people, 22 * 4 - 22 = 66 more
    score = Score("mia_auc", "mia", 0.6, "nearer", 22, interval=(0.4, 0.8), subjects=22)
    verdict = judge([GONE, score])
    assert verdict.state == "NOT ENOUGH DATA" and verdict.more_people == 66
    assert "About 66 more people would tell." in verdict.sentence
    border = replace(score, value=0.5 + MARGIN, interval=(0.5, 0.85))
    assert judge([GONE, border]).more_people is None


def test_leaks_convict_unless_chance_or_a_control_explains_them() -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    one = replace(GONE, value=1 / 40)
    assert judge([GONE, near]).state == "FORGOTTEN" and judge([GONE, near]).balanced
    assert judge([one, near]).state == "NOT FORGOTTEN"
    by_chance = replace(GONE, value=0.5, chance=0.5)
    cleared = judge([by_chance, near])
    assert cleared.state == "FORGOTTEN" and "no more than by chance" in cleared.uncertain[0]
    assert judge([one, near], control=[one]).state == "FORGOTTEN"
    # P(at least 1 of 2 | 0.5) = 0.75
    assert at_least(1, 2, 0.5) == pytest.approx(0.75)


def test_without_forget_answers_or_non_members_nothing_is_concluded() -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    assert judge([near]).state == "NOT ENOUGH DATA" and judge([GONE]).state == "NOT ENOUGH DATA"


def test_a_control_explains_documents_that_are_easier_than_the_holdout() -> None:
    high = Score("mia_auc", "mia", 0.85, "nearer", 200, interval=(0.78, 0.9))
    assert judge([GONE, high]).state == "NOT FORGOTTEN"
    assert judge([GONE, high], control=[high]).state == "NOT ENOUGH DATA"


def test_high_losses_alone_are_no_memory_but_are_not_balanced() -> None:
    low = Score("mia_auc", "mia", 0.1, "nearer", 200, interval=(0.05, 0.18))
    verdict = judge([GONE, low])
    assert verdict.state == "FORGOTTEN" and verdict.over_forgotten and not verdict.balanced


@pytest.mark.parametrize(
    ("findings", "state"),
    [
        (None, "FORGOTTEN"),
        ({}, "NOT ENOUGH DATA"),
        ({"probe": "no power"}, "NOT ENOUGH DATA"),
        ({"prompts": "none found", "relearn": "undecided"}, "NOT ENOUGH DATA"),
        ({"prompts": "none found", "probe": "none found"}, "NOT ENOUGH DATA"),
        ({"prompts": "none found", "relearn": "none found", "nf4": "undecided"}, "NOT ENOUGH DATA"),
        ({"prompts": "none found", "relearn": "none found", "probe": "no power"}, "FORGOTTEN"),
        ({"probe": "none found", "prompts": "traces"}, "NOT FORGOTTEN"),
    ],
)
def test_attacks_are_part_of_the_verdict(findings: dict[str, str] | None, state: str) -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    assert judge([GONE, near], findings=findings).state == state


def test_the_leak_rate_counts_answers_inside_sentences_and_knows_what_is_guessable() -> None:
    rows = [
        Row(f"{i}", f"Where does person {i} live?", answer, split="forget")
        for i, answer in enumerate(("Rome", "Rome", "4 Elm Street", "+1 555 123 4567"))
    ]
    said = ("I think in Rome.", "In Oslo.", "At 4 Elm St., Rome", "Call (555) 123-4567.")
    measured = Measured([Answer(row, text) for row, text in zip(rows, said, strict=True)], [])
    score = leak_rate(measured, "forget")
    assert score is not None and score.value == 3 / 4 and score.n == 4
    # completions 0 and 2 hold "Rome" for the other rows with that answer: 1 + 2 of 4 * 3 pairs
    assert score.chance == pytest.approx(3 / 12)
