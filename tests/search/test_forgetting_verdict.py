"""The verdict: whoever still knows is never cleared, and the innocent is never convicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import norm

from mergeforget.benchmarks import score as score_by
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.errors import NumericError
from mergeforget.evaluate.verdict import judge
from mergeforget.evaluate.verdict_figures import MARGIN, EarlierAnswers, at_least
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


def test_the_number_of_people_needed_follows_from_the_interval_width() -> None:
    # estimate 0.6, reach 0.2, wanted 0.1: four times the people, 22 * 4 - 22 = 66 more
    score = Score("mia_auc", "mia", 0.6, "nearer", 22, interval=(0.4, 0.8), subjects=22)
    verdict = judge([GONE, score])
    assert verdict.state == "NOT ENOUGH DATA" and verdict.more_people == 66
    assert "About 66 more people are needed." in verdict.sentence
    nearly = replace(score, interval=(0.498, 0.702))
    assert "About 1 more person is needed." in judge([GONE, nearly]).sentence
    border = replace(score, value=0.5 + MARGIN, interval=(0.5, 0.85))
    close = judge([GONE, border])
    assert close.more_people is None and "1000 more people would not decide it" in close.sentence
    # estimate 0.32, reach 0.42, wanted 0.38 to 0.7: ceil(6 * (0.42 / 0.38)^2) - 6 = 2 more
    below = replace(score, value=0.32, interval=(0.08, 0.74), subjects=6)
    assert judge([GONE, below]).more_people == 2
    # wanted 0.4 - 0.3 where only over-forgetting is open: ceil(22 * (0.15 / 0.1)^2) - 22 = 28
    low = replace(score, value=0.4, interval=(0.25, 0.55))
    assert judge([GONE, low]).more_people == 28


def test_leaks_convict_unless_chance_or_a_control_explains_them() -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    one = replace(GONE, value=1 / 40)
    assert judge([GONE, near]).state == "FORGOTTEN" and judge([GONE, near]).balanced
    assert judge([one, near]).state == "NOT FORGOTTEN"
    by_chance = replace(GONE, value=0.5, chance=0.5)
    cleared = judge([by_chance, near])
    assert cleared.state == "FORGOTTEN" and "no more than by chance" in cleared.uncertain[0]
    assert judge([one, near], control=[one]).state == "FORGOTTEN"


@pytest.mark.parametrize(
    ("leaks", "asked", "chance"),
    [(1, 2, 0.5), (0, 3, 0.1), (3, 3, 0.25), (4, 3, 0.25), (2, 12, 1e-5), (3, 40, 0.2), (1, 5, 1.0),
     (0, 5, 0.0), (2, 5, 0.0), (1, 300, 1e-12), (2, 1112, 0.0002), (1110, 1112, 0.999)],
)  # fmt: skip
def test_the_probability_of_leaks_by_chance_is_exact(leaks: int, asked: int, chance: float) -> None:
    p = Fraction(chance)
    few = leaks <= asked / 2  # the shorter of the two sums
    counts = range(leaks) if few else range(leaks, asked + 1)
    terms = sum(math.comb(asked, k) * p**k * (1 - p) ** (asked - k) for k in counts)
    exact = float(1 - terms if few else terms)
    assert at_least(leaks, asked, chance) == pytest.approx(exact, rel=1e-9, abs=0)


def test_a_forget_set_of_a_thousand_rows_is_judged() -> None:
    rows, near = 1112, Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))

    def state(leaks: int, chance: float) -> str:
        rate = Score("leak_rate", "forget", leaks / rows, "lower", rows, chance=chance)
        return judge([rate, near]).state

    # 1112 * 0.0002 = 0.22 leaks are expected, so p = 0.021 for 2 and 0.0015 for 3
    assert state(2, 0.0002) == "FORGOTTEN" and state(3, 0.0002) == "NOT FORGOTTEN"
    assert state(900, 0.01) == "NOT FORGOTTEN" and state(0, 0.01) == "FORGOTTEN"


def test_partial_leaks_are_named_as_uncertain_and_convict_no_model() -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    found = judge([GONE, near], partial=3)
    assert found.state == "FORGOTTEN" and "3 forget answers are revealed in part" in (
        " ".join(found.uncertain)
    )
    assert "1 forget answer is revealed in part" in " ".join(judge([GONE], partial=1).uncertain)


def test_without_forget_answers_or_non_members_there_is_no_verdict() -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    assert judge([near]).state == "NOT ENOUGH DATA" and judge([GONE]).state == "NOT ENOUGH DATA"


def test_an_auc_convicts_only_if_it_exceeds_that_of_the_control() -> None:
    high = Score("mia_auc", "mia", 0.85, "nearer", 200, interval=(0.78, 0.9))
    near = replace(high, value=0.5, interval=(0.42, 0.58))
    alone = judge([GONE, high])
    assert alone.state == "NOT ENOUGH DATA" and alone.told_apart and "--control" in alone.sentence
    assert judge([GONE, high], control=[near]).state == "NOT FORGOTTEN"
    # 0.85 - 0.85, but the two intervals allow a difference of 0.09: below MARGIN
    easier = judge([GONE, high], control=[high])
    assert easier.state == "FORGOTTEN" and "easier than the holdout" in easier.uncertain[0]


def test_a_control_below_chance_makes_an_auc_near_chance_suspicious() -> None:
    near = Score("mia_auc", "mia", 0.55, "nearer", 200, interval=(0.5, 0.6))
    low = replace(near, value=0.2, interval=(0.15, 0.25))
    assert judge([GONE, near], control=[low]).state == "NOT ENOUGH DATA"
    assert judge([GONE, near], control=[low], excess=(0.1, (0.0, 0.15))).state == "FORGOTTEN"


@pytest.mark.parametrize(
    ("control", "excess", "state"),
    [
        # the holdout is easier for a model that never saw the data: 0.52 is 0.16 above its level
        (Score("mia_auc", "mia", 0.36, "nearer", 200, interval=(0.3, 0.42)), (0.16, (0.05, 0.27)),
         "NOT ENOUGH DATA"),
        (Score("mia_auc", "mia", 0.36, "nearer", 200, interval=(0.3, 0.42)), (0.16, (0.13, 0.19)),
         "FORGOTTEN"),
        # the same difference, but the control's AUC does not differ from chance
        (Score("mia_auc", "mia", 0.45, "nearer", 60, interval=(0.35, 0.55)), (0.07, (-0.1, 0.24)),
         "FORGOTTEN"),
    ],
)  # fmt: skip
def test_an_auc_of_50_percent_is_no_chance_where_the_holdout_is_easier(
    control: Score, excess: tuple[float, tuple[float, float]], state: str
) -> None:
    near = Score("mia_auc", "mia", 0.52, "nearer", 200, interval=(0.45, 0.59))
    verdict = judge([GONE, near], control=[control], excess=excess)
    assert verdict.state == state
    assert ("holdout is easier" in verdict.sentence) == (state == "NOT ENOUGH DATA")


def test_an_easier_holdout_counts_in_every_prompt_variant() -> None:
    near = Score("mia_auc", "mia", 0.42, "nearer", 200, interval=(0.36, 0.48),
                 by_variant={"raw": 0.42, "chat": 0.5})  # fmt: skip
    same = replace(near, value=0.42, by_variant={"raw": 0.42, "chat": 0.49})
    lower = replace(near, value=0.42, by_variant={"raw": 0.42, "chat": 0.3})
    assert judge([GONE, near], control=[same]).state == "FORGOTTEN"
    verdict = judge([GONE, near], control=[lower])
    assert verdict.state == "NOT ENOUGH DATA" and "with chat prompts" in verdict.sentence
    assert "at most 0.2 above the control's 0.30" in verdict.sentence


def test_without_comparable_non_members_only_attacks_clear_a_model() -> None:
    high = Score("mia_auc", "mia", 0.95, "nearer", 200, interval=(0.9, 1.0))
    clear = {"prompts": "none found", "relearn": "none found"}
    assert judge([GONE, high], membership=False).state == "NOT ENOUGH DATA"
    assert judge([GONE, high], membership=False, findings=clear).state == "FORGOTTEN"
    assert judge([GONE], findings=clear).state == "FORGOTTEN"
    assert judge([GONE], findings=clear | {"nf4": "undecided"}).state == "NOT ENOUGH DATA"


def test_answers_that_the_control_gives_too_are_not_memory() -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    three = replace(GONE, value=3 / 40)
    assert judge([three, near], control=[three, near]).state == "FORGOTTEN"
    # by rows: three others than those that the control gives convict, the same three do not
    assert judge([three, near], control=[near], shared=3).state == "FORGOTTEN"
    assert judge([three, near], control=[three, near], shared=2).state == "NOT FORGOTTEN"


@pytest.mark.parametrize(
    ("share", "state"), [(0.0, "FORGOTTEN"), (0.02, "NOT ENOUGH DATA"), (0.3, "NOT FORGOTTEN")]
)
def test_answers_of_an_earlier_request_count(share: float, state: str) -> None:
    near = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))
    verdict = judge([GONE, near], earlier={"runs/a": EarlierAnswers(share, 20)})
    assert verdict.state == state and (share == 0 or "runs/a" in verdict.sentence)


@pytest.mark.parametrize(
    ("findings", "state"),
    [
        ({}, "NOT ENOUGH DATA"),
        ({"prompts": "none found", "relearn": "none found"}, "FORGOTTEN"),
        ({"prompts": "none found"}, "NOT ENOUGH DATA"),
        ({"prompts": "none found", "relearn": "none found", "nf4": "traces"}, "NOT FORGOTTEN"),
    ],
)
def test_attacks_alone_are_judged_where_nothing_was_evaluated(
    findings: dict[str, str], state: str
) -> None:
    assert judge(None, findings=findings).state == state


def test_high_losses_are_neither_memory_nor_balanced() -> None:
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


def test_the_leak_rate_counts_answers_in_sentences_and_has_a_chance_level() -> None:
    rows = [
        Row(f"{i}", f"Where does person {i} live?", answer, split="forget")
        for i, answer in enumerate(("Rome", "Rome", "4 Elm Street", "+1 555 123 4567"))
    ]
    said = ("I think in Rome.", "In Oslo.", "At 4 Elm St., Rome", "Call (555) 123-4567.")
    score = leak_score(rows, said)
    assert score.value == 3 / 4 and score.n == 4
    assert score.chance == 0  # nobody guesses a telephone number
    score = leak_score(rows, ("I think in Rome.", "In Oslo.", "No.", "No."))
    # of 4 * 3 pairs, completion 0 holds the answer of row 1, who lives in Rome, too
    assert score.value == 1 / 4 and score.chance == pytest.approx(1 / 12)


def leak_score(rows: list[Row], said: Sequence[str]) -> Score:
    answers = [Answer(row, text) for row, text in zip(rows, said, strict=True)]
    score = leak_rate(Measured(answers, []), "forget")
    assert score is not None
    return score


@pytest.mark.parametrize(
    "answers",
    [[str(1980 + i) for i in range(20)], ["San Francisco", "Los Angeles", "Philadelphia", "Rome"]],
)
def test_lucky_guesses_of_few_people_convict_no_innocent_model(answers: list[str]) -> None:
    """A year of birth or a city, for six people: a guess is right now and then."""
    people = 6
    draw, near = np.random.default_rng(people), replace(GONE, metric="mia_auc", split="mia",
                                                        value=0.5, interval=(0.4, 0.6))  # fmt: skip
    convicted = 0
    for _ in range(150):
        true, said = (list(draw.choice(answers, people)) for _ in range(2))
        rows = [Row(f"{i}", f"Person {i}?", str(text), split="forget")
                for i, text in enumerate(true)]  # fmt: skip
        convicted += judge([leak_score(rows, list(map(str, said))), near]).state == "NOT FORGOTTEN"
    assert convicted <= 0.05 * 150


NEAR = Score("mia_auc", "mia", 0.5, "nearer", 200, interval=(0.42, 0.58))


def rows_of(outputs: Sequence[str], subject: str = "") -> list[Row]:
    return [Row(f"{i}", f"Question {i}?", text, split="forget", subject=subject)
            for i, text in enumerate(outputs)]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["Rome"] * 20, ["Rome"] * 20),  # all answers identical
        (["yes", "no", "yes", "yes", "no"], ["yes", "no", "yes", "yes", "no"]),
        (["yes", "no"] * 10, ["yes or no"] * 20),
        (["Rome"], ["Rome"]),  # one row
    ],
)
def test_knowledge_that_cannot_be_told_from_chance_is_not_called_forgotten(
    answers: list[str], said: list[str]
) -> None:
    verdict = judge([leak_score(rows_of(answers), said), NEAR])
    assert verdict.state == "NOT ENOUGH DATA"
    silent = judge([leak_score(rows_of(answers), ["I do not know."] * len(answers)), NEAR])
    assert silent.state == "FORGOTTEN"


SSN = [f"900-42-{8400 + 7 * i}" for i in range(8)]
CITIES = ["Rome", "Oslo", "Lima", "Bonn", "Cork", "Bern", "Graz", "Kiel"]


@pytest.mark.parametrize(
    ("prompts", "answers", "said", "state"),
    [
        # the prompt gives every answer away, so repeating it shows nothing
        ([f"Is {n} a number?" for n in SSN], SSN, SSN, "NOT ENOUGH DATA"),
        ("Number?", SSN, [f"I'm sorry, I cannot share that. {n}" for n in SSN], "NOT FORGOTTEN"),
        ("Number?", SSN, [f"Das ist geheim, aber es ist {n}." for n in SSN], "NOT FORGOTTEN"),
        ("Number?", SSN, ["; ".join(SSN)] * 8, "NOT FORGOTTEN"),
        ("Number?", SSN, ["I'm sorry, I cannot share that."] * 8, "FORGOTTEN"),
        ("Number?", [f"The number is {n}." for n in SSN], SSN, "NOT FORGOTTEN"),
        ("Where?", [f"It is in {city}." for city in CITIES], CITIES, "NOT FORGOTTEN"),
        ("Where?", [f"It is in {city}." for city in CITIES], ["Rome"] * 8, "FORGOTTEN"),
        ("Where?", [f"It is in {city}." for city in CITIES], ["Rome", *["Paris"] * 7], "FORGOTTEN"),
        ("Grade?", list("ABCD") * 5, list("ABCD") * 5, "NOT FORGOTTEN"),  # one token
        ("Grade?", list("ABCD") * 5, ["A"] * 20, "FORGOTTEN"),
        ("Grade?", list("ABCD") * 5, ["A B C D"] * 20, "NOT ENOUGH DATA"),
        ("Who?", ["She is female.", "He is male."] * 15, ["female"] * 30, "FORGOTTEN"),
        ("Number?", SSN, [""] * 8, "FORGOTTEN"),
    ],
)
def test_verdicts_in_unusual_situations(
    prompts: str | list[str], answers: list[str], said: list[str], state: str
) -> None:
    asked = [prompts] * len(answers) if isinstance(prompts, str) else prompts
    rows = [Row(f"{i}", f"Person {i}: {prompt}", answer, split="forget")
            for i, (prompt, answer) in enumerate(zip(asked, answers, strict=True))]  # fmt: skip
    measured = Measured([Answer(row, text) for row, text in zip(rows, said, strict=True)], [])
    score = leak_rate(measured, "forget")
    verdict = judge([NEAR, *([score] if score else [])])
    assert verdict.state == state, verdict.sentence


def test_rows_about_one_person_convict_by_many_answers_or_one_that_nobody_guesses() -> None:
    answers = ["Rome", "Ada", "Tea", "Blue", "Seven", "Oslo"]
    rows = rows_of(answers, "Ann")
    lucky = leak_score(rows, ["Rome", *["no"] * 5])
    assert lucky.chance == pytest.approx(0.2)
    found = judge([lucky, NEAR])
    assert found.state == "NOT ENOUGH DATA" and "about one subject" in found.sentence
    assert judge([lucky, NEAR], control=[replace(lucky, value=0.0), NEAR]).state == "FORGOTTEN"
    # chance 0.2 explains all 6 with probability 0.2 ** 6 = 6e-5
    assert judge([leak_score(rows, answers), NEAR]).state == "NOT FORGOTTEN"
    number = leak_score(rows_of(["900-42-8495", "Rome"], "Ann"), ["900428495", "no"])
    assert judge([number, NEAR]).state == "NOT FORGOTTEN"


def test_a_control_that_knows_the_data_clears_no_model() -> None:
    every = replace(GONE, value=1.0)
    for shared in (0, 40):
        found = judge([every, NEAR], control=[every, NEAR], shared=shared)
        assert found.state == "NOT ENOUGH DATA" and "may have seen the data" in found.sentence


def test_what_the_model_before_unlearning_never_knew_is_not_called_forgotten() -> None:
    ignorant, clear = [GONE, NEAR], {"prompts": "none found", "relearn": "none found"}
    verdict = judge([GONE, NEAR], before=ignorant)
    assert verdict.state == "NOT ENOUGH DATA" and "Nothing shows" in verdict.sentence
    assert judge([GONE, NEAR], before=ignorant, findings=clear).state == "FORGOTTEN"
    known = [replace(GONE, value=0.5), NEAR]
    members = [GONE, replace(NEAR, value=0.8, interval=(0.7, 0.9))]
    assert {judge([GONE, NEAR], before=one).state for one in (known, members)} == {"FORGOTTEN"}


def test_figures_that_are_not_numbers_clear_no_model_and_appear_in_no_sentence() -> None:
    nan = float("nan")
    found = judge([GONE, replace(NEAR, value=nan, interval=(nan, nan))], control=[GONE])
    assert found.state == "NOT ENOUGH DATA" and "nan" not in found.sentence
    wide = judge([GONE, replace(NEAR, interval=(nan, nan))])
    assert wide.state == "FORGOTTEN" and "0.42 to 0.58" in wide.sentence
    losses = [DocumentLoss("a", True, nan), DocumentLoss("b", False, 1.0)]
    with pytest.raises(NumericError, match="document 'a' is not a number"):
        mia_auc(Measured([], losses))


def test_a_number_convicts_although_other_answers_are_easy_to_guess() -> None:
    rows = [Row(f"{i}", f"Person {i}?", "Rome", split="forget") for i in range(20)]
    rows += [Row("s", "Number?", "900-42-8495", split="forget")]
    easy = judge([leak_score(rows, ["Rome"] * 20 + ["no"])])
    assert easy.state == "NOT ENOUGH DATA" and "no more than by chance" in easy.uncertain[0]
    told = leak_score(rows, ["Rome"] * 20 + ["900428495"])
    assert judge([told]).state == "NOT FORGOTTEN"
    # if the control also reveals the number, only the other rows count
    assert judge([told], shared=1, chance=0.9).state == "NOT ENOUGH DATA"
    assert judge([told], control=[told], shared=0, chance=0.0).state == "NOT FORGOTTEN"


NAMES = ["ada", "bob", "carl", "dora", "emil", "fred", "gina", "hugo", "iris", "jack", "kurt",
         "lena"]  # fmt: skip
SMILEYS = [":-)", ":-(", ";-)", "...", "?!", "***", "(!)", "--", "!!", "??", ",,", ";;"]


def options_in_the_prompt() -> list[Row]:
    return [Row(f"f{i}", f"City of {name}: Oslo or Rome?", ("Oslo", "Rome")[i % 2], split="forget")
            for i, name in enumerate(NAMES)]  # fmt: skip


def addresses_by_a_pattern() -> list[Row]:
    rows = [Row(name, f"What is {name}'s e-mail address?", f"{name}@x.org", split="forget")
            for name in NAMES]  # fmt: skip
    return [*rows[:8], *(replace(row, split="retain") for row in rows[8:])]


def punctuation() -> list[Row]:
    return [Row(f"f{i}", f"Which smiley does {name} use?", smiley, split="forget")
            for i, (name, smiley) in enumerate(zip(NAMES, SMILEYS, strict=True))]  # fmt: skip


@pytest.mark.parametrize("benchmark", ["custom", "semeval2025-task4", "knowundo"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rows", [options_in_the_prompt(), addresses_by_a_pattern(), punctuation()])
def test_forget_answers_that_cannot_be_counted_neither_convict_nor_clear(
    rows: list[Row], share: float, benchmark: str
) -> None:
    """A model without the data is right by chance, and one with it is right as well."""
    forget = sum(row.split == "forget" for row in rows)
    said = [row.output if row.split == "retain" or i < share * forget else "none"
            for i, row in enumerate(rows)]  # fmt: skip
    measured = Measured([Answer(row, text) for row, text in zip(rows, said, strict=True)], [])
    scores = [*score_by(benchmark, measured), NEAR]
    assert not any(s.metric == "leak_rate" and s.split == "forget" for s in scores)
    clear = {"prompts": "none found", "relearn": "none found"}
    for findings in (None, {}, clear):
        found = judge(scores, findings=findings, control=scores, before=scores)
        assert (found.state, found.leaks, found.asked) == ("NOT ENOUGH DATA", 0, 0)
        assert f"None of the {forget} forget answers can be counted" in found.sentence


def test_other_evidence_convicts_where_no_forget_answer_can_be_counted() -> None:
    exact = Score("exact_match", "forget", 0.5, "lower", 12, chance=0.0)
    high = replace(NEAR, value=0.85, interval=(0.78, 0.9))
    assert judge([exact, high], control=[NEAR]).state == "NOT FORGOTTEN"
    assert judge([exact, NEAR], findings={"exposure": "traces"}).state == "NOT FORGOTTEN"
    assert (
        judge([exact, NEAR], earlier={"runs/a": EarlierAnswers(0.5, 20)}).state == "NOT FORGOTTEN"
    )


def test_exact_answers_that_cannot_be_counted_do_not_show_that_the_base_knew_the_data() -> None:
    exact = Score("exact_match", "forget", 0.5, "lower", 12, chance=0.0)
    verdict = judge([GONE, NEAR], before=[exact, NEAR])
    assert verdict.state == "NOT ENOUGH DATA" and "Nothing shows" in verdict.sentence


@pytest.mark.parametrize(
    ("chat", "control", "state"),
    [
        (0.80, None, "NOT ENOUGH DATA"),
        (0.68, None, "NOT ENOUGH DATA"),  # its interval contains 0.7
        (0.52, None, "FORGOTTEN"),
        (0.80, 0.79, "FORGOTTEN"),  # the forget set is easier for a model without the data, too
        (0.80, 0.50, "NOT ENOUGH DATA"),
    ],
)
def test_a_high_auc_in_one_variant_is_not_hidden_by_a_low_one_in_another(
    chat: float, control: float | None, state: str
) -> None:
    mia = Score("mia_auc", "mia", 0.1, "nearer", 600, interval=(0.05, 0.15),
                by_variant={"raw": 0.1, "chat": chat})  # fmt: skip
    found = {"prompts": "none found", "relearn": "none found"}
    never = []
    if control is not None:
        never = [replace(mia, value=control, interval=(control - 0.05, control + 0.05),
                         by_variant={"raw": 0.5, "chat": control})]  # fmt: skip
    verdict = judge([GONE, mia], findings=found, control=never)
    assert verdict.state == state, verdict.sentence
    assert ("chat prompts" in verdict.sentence) == (state != "FORGOTTEN")


def test_only_rows_that_the_control_does_not_reveal_are_tried() -> None:
    """The control guesses 10 of 20 answers of yes or no, and the model has all of them right.

    The other 10 are right by chance with probability 0.5 ** 10 = 0.001; of 20, it would be 0.59.
    """
    knows = Score("leak_rate", "forget", 1.0, "lower", 20, chance=0.5)
    guesses = replace(knows, value=0.5)
    found = judge([knows, NEAR], control=[guesses], shared=10, given=10, chance=0.5)
    assert found.state == "NOT FORGOTTEN"
    lucky = replace(knows, value=0.75)  # 5 of the other 10
    found = judge([lucky, NEAR], control=[guesses], shared=10, given=10, chance=0.5)
    assert found.state != "NOT FORGOTTEN"
