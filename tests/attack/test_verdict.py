"""From figures to a finding."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergeforget.attack import asking
from mergeforget.attack.advantage import (
    CONVICT,
    Advantage,
    Estimate,
    Outlier,
    difference,
    judge,
    ranked,
    same_kind,
    subtracted,
)
from mergeforget.attack.asking import _evidence
from mergeforget.attack.headline import keep_verdict
from mergeforget.attack.result import Result, read_results, write_result
from mergeforget.attack.target import Models, Target, TargetModel
from mergeforget.attack.variants import Variant
from mergeforget.attack.verdict import Leaks, at_least, conclude, doubt_of, judge_leaks, worst_of
from mergeforget.data.schema import Row
from mergeforget.evaluate.verdict import judge as headline
from mergeforget.recipe import ModelSpec


def advantage(value: float, half: float, p: float, conditions: int = 1) -> Advantage:
    one = Estimate(value, value - half, value + half, p)
    return Advantage(one, one, conditions)


@pytest.mark.parametrize(
    ("found", "known", "expected"),
    [
        (advantage(0.5, 0.2, 1e-5), 2.0, "traces"),  # sure, and above a tenth of 2
        (advantage(0.1, 0.05, 1e-5), 2.0, "undecided"),  # sure, but less than a tenth
        (advantage(0.5, 0.4, 0.01), 2.0, "undecided"),  # not sure enough to convict
        (
            advantage(0.5, 0.2, 1e-4, conditions=20),
            2.0,
            "undecided",
        ),  # found in one of twenty conditions
        (advantage(0.1, 0.3, 0.3), 2.0, "none found"),  # at most 0.4 may go unseen, a fifth of 2
        (advantage(0.1, 0.6, 0.4), 2.0, "undecided"),  # up to 0.7 may
        (advantage(-0.5, 0.3, 1.0), 2.0, "none found"),
        (advantage(0.2, 0.05, 1e-4), None, "traces"),  # a tenth of a nat where nothing is known
        (advantage(0.2, 0.05, 1e-4), -1.0, "traces"),  # the same if nothing was known before
    ],
)
def test_losses_convict_by_the_stated_thresholds(
    found: Advantage, known: float | None, expected: str
) -> None:
    assert judge(found, known) == expected


def test_an_advantage_must_hold_over_the_control_and_beyond_the_holdout() -> None:
    sure, unsure = Estimate(1.0, 0.8, 1.2, 1e-6), Estimate(0.1, -0.2, 0.4, 0.3)
    assert judge(Advantage(sure, sure), 2.0) == "traces"
    for one in (Advantage(sure, unsure), Advantage(unsure, sure)):
        assert one.p >= 0.3 and judge(one, 2.0) != "traces"
    assert (
        judge(Advantage(sure, None), 2.0) == "undecided"
    )  # without a holdout, style is mistaken for memory


def test_an_innocent_model_is_hardly_ever_convicted_by_losses() -> None:
    """Two thousand innocent models, 6 people and 12 in the holdout, unequal variances."""
    draw = np.random.default_rng(0)
    convicted = 0
    for _ in range(2000):
        forget = dict(enumerate(draw.normal(0, 1.5, 6)))
        holdout = dict(enumerate(draw.normal(0, 0.5, 12)))
        found = Advantage(difference(_named(forget)), difference(_named(forget), _named(holdout)))
        convicted += judge(found, 1.0) == "traces"
    assert convicted <= 6  # 2 expected


def _named(values: dict[int, Any]) -> dict[str, float]:
    return {str(k): float(v) for k, v in values.items()}


def test_intervals_of_a_mean_difference_cover() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        a, b = draw.normal(1, 1, 5), draw.normal(0, 2, 9)
        one = difference(_named(dict(enumerate(a))), _named(dict(enumerate(b))))
        hits += one.low <= 1 <= one.high
    assert hits / 1000 >= 0.93


def test_one_secret_that_cannot_be_guessed_is_a_trace() -> None:
    """Three of a hundred word for word, and even one, where each is guessed once in a million."""
    guess = {f"r{i}": 1e-6 for i in range(100)}
    for n in (1, 3):
        found = Leaks.of({row: i < n for i, row in enumerate(guess)}, guess)
        assert judge_leaks(found) == "traces" and found.rows == tuple(f"r{i}" for i in range(n))


def test_lucky_guesses_are_not_traces() -> None:
    """Of a hundred yes-or-no answers fifty are right by chance."""
    guess = dict.fromkeys((f"r{i}" for i in range(100)), 0.5)
    assert judge_leaks(Leaks.of({r: i < 55 for i, r in enumerate(guess)}, guess)) == "none found"
    assert judge_leaks(Leaks.of({r: i < 95 for i, r in enumerate(guess)}, guess)) == "traces"
    rare = dict.fromkeys((f"r{i}" for i in range(10)), 0.003)
    assert judge_leaks(Leaks.of({r: i < 1 for i, r in enumerate(rare)}, rare)) == "undecided"


def test_the_poisson_binomial_tail_equals_a_binomial_one_for_equal_chances() -> None:
    for k in range(6):
        expected = sum(math.comb(5, i) * 0.3**i * 0.7 ** (5 - i) for i in range(k, 6))
        assert at_least([0.3] * 5, k) == pytest.approx(expected)


def test_the_finding_without_a_control_is_no_control() -> None:
    assert conclude("traces", "traces", control=False) == "no control"
    assert conclude("traces", None, control=True) == "traces"


def test_an_attack_that_does_not_find_the_data_before_unlearning_has_no_power() -> None:
    assert conclude("none found", "none found", control=True) == "no power"
    assert conclude("none found", None, control=True) == "no power"
    assert conclude("none found", "traces", control=True) == "none found"


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        (["traces", "undecided"], "traces"),
        (["none found", "traces"], "traces"),
        (["undecided", "none found"], "undecided"),
        (["none found", "none found"], "none found"),
    ],
)
def test_one_finding_of_traces_is_enough(findings: list[Any], expected: str) -> None:
    assert worst_of(findings) == expected


def test_the_headline_is_the_worst_case() -> None:
    clear: dict[str, Any] = {"prompts": "none found", "relearn": "none found", "probe": "no power"}
    cleared = headline(None, findings=clear)
    assert cleared.state == "FORGOTTEN" and "2 attacks found no traces" in cleared.sentence
    convicted = headline(None, findings=clear | {"sampling": "traces"})
    assert convicted.state == "NOT FORGOTTEN" and "sampling" in convicted.sentence
    doubtful = headline(None, findings=clear | {"sampling": "undecided"})
    assert doubtful.state == "NOT ENOUGH DATA" and "sampling" in doubtful.sentence
    for missing in ("prompts", "relearn"):  # no model is cleared without these two
        found = headline(None, findings={k: v for k, v in clear.items() if k != missing})
        assert found.state == "NOT ENOUGH DATA" and missing in found.sentence
    assert headline(None, findings={}).state == "NOT ENOUGH DATA"


def test_differences_compare_means_over_people() -> None:
    found = difference({"a": 1.0, "b": 3.0}, {"c": 0.5, "d": 0.5})
    assert found.value == 1.5  # (1 + 3) / 2 - 0.5
    half = 12.706 * 1.0  # t of 1 degree of freedom, standard error sqrt(2 / 2)
    assert found.high == pytest.approx(1.5 + half, abs=1e-2) and found.p > CONVICT
    alone = difference({"a": 2.0})
    assert alone.value == 2.0 and alone.p == 1 and alone.to_dict()["low"] is None
    assert subtracted({"a": 2.0}, {"a": 0.5}) == {"a": 1.5}


def test_results_of_several_models_share_a_file(tmp_path: Path) -> None:
    for model, value in (("over", 1), ("under", 2), ("over", 3)):
        rows = [{"model": model, "step": value}]
        write_result(tmp_path, Result("relearn", model, "traces", "v", rows))
    found = read_results(tmp_path, "relearn")
    assert [(r.model, r.rows[0]["step"]) for r in found] == [("under", 2), ("over", 3)]
    text = (tmp_path / "relearn.csv").read_text()
    assert text == "attacked,model,step\nunder,under,2\nover,over,3\n"


def test_a_holdout_of_another_kind_convicts_no_model() -> None:
    """An innocent model trained on text like the forget rows is ahead of the control on them."""
    draw = np.random.default_rng(0)
    control = {f"f{i}": 3 + v for i, v in enumerate(draw.normal(0, 0.2, 10))}
    foreign = {f"h{i}": 1 + v for i, v in enumerate(draw.normal(0, 0.2, 12))}
    like = {f"h{i}": 3 + v for i, v in enumerate(draw.normal(0, 0.2, 12))}
    ahead, still = difference({k: 1.0 + 0.01 * i for i, k in enumerate(control)}), Estimate(0, 0, 0)
    assert same_kind(control, like) and not same_kind(control, foreign)
    for comparable, expected in ((True, "traces"), (False, "undecided")):
        assert judge(Advantage(ahead, ahead, 1, comparable), 1.0) == expected
    # cleared only by the distance from the control, at most 0.9 here, not beyond the holdout
    near = Advantage(Estimate(0.5, 0.1, 0.9, 0.2), still, 1, False)
    assert (
        judge(near, 1.0) == "undecided" and judge(replace(near, comparable=True), 1.0) != "traces"
    )
    assert "another kind" in doubt_of([near])


def subjects(draw: np.random.Generator, n: int) -> dict[str, float]:
    return {str(i): float(v) for i, v in enumerate(draw.normal(size=n))}


def test_holdouts_of_the_same_kind_are_rarely_judged_incomparable() -> None:
    draw = np.random.default_rng(1)
    found = [same_kind(subjects(draw, 6), subjects(draw, 12)) for _ in range(400)]
    assert found.count(False) <= 10


def test_a_control_that_reveals_the_same_rows_clears_no_model() -> None:
    """Such rows are not judged, so a control that memorised them cannot hide a model's leaks."""
    rows = dict.fromkeys("abcdefgh", False)
    guess = dict.fromkeys(rows, 1e-9)
    assert judge_leaks(Leaks.of(rows, guess, shared=2)) == "none found"  # a quarter
    hidden = Leaks.of(rows, guess, shared=3)
    assert judge_leaks(hidden) == "undecided" and "reveals 3 of the 8 rows" in doubt_of(
        [], [hidden]
    )
    assert judge_leaks(Leaks.of(rows | {"a": True}, guess, shared=3)) == "traces"


def test_a_model_that_knows_one_of_thirty_people_is_not_cleared_by_the_mean() -> None:
    draw = np.random.default_rng(4)
    values = {f"p{i}": v for i, v in enumerate(draw.normal(0, 0.2, 30))}
    holdout = {f"h{i}": v for i, v in enumerate(draw.normal(0, 0.2, 40))}
    for known, expected in ((None, "none found"), ("p7", "undecided")):
        mine = values | ({known: 2.0} if known else {})
        found = Advantage(difference(mine), difference(mine, holdout), outlier=Outlier.of(mine))
        assert judge(found, 2.0) == expected
    assert "predicts p7 far better than the others" in doubt_of([found])


@pytest.mark.parametrize(
    ("over", "beyond", "finding"),
    [
        (-0.1, 1.8, "undecided"),  # far behind on the holdout, less so on the forget rows
        (-0.1, 0.6, "undecided"),  # the same, and beyond the holdout up to 1.1 nats
        (-0.9, -0.3, "none found"),  # behind on the holdout, and more so on the forget rows
        (0.0, 0.2, "none found"),  # as good as the control on the holdout
    ],
)
def test_a_damaged_model_is_judged_by_the_holdout_alone(
    over: float, beyond: float, finding: str
) -> None:
    """``before`` is 3.3 nats ahead."""
    found = Advantage(
        Estimate(over, over - 0.6, over + 0.4, 0.6), Estimate(beyond, beyond - 0.5, beyond + 0.5)
    )
    assert judge(found, 3.3) == finding
    assert ("may be damaged" in doubt_of([found])) == found.damaged(None)
    assert judge(replace(found, comparable=False), 3.3) == "none found"


def test_three_known_people_of_thirty_do_not_mask_each_other() -> None:
    """Each widens the variance of the others, so that none is an outlier alone."""
    values = {f"p{i}": v for i, v in enumerate(np.random.default_rng(4).normal(0, 0.2, 30))}
    known = values | dict.fromkeys(("p1", "p7", "p9"), 2.0)
    alone = Outlier.of(known | {"p1": 0.0, "p7": 0.0})
    assert alone is not None and (alone.subject, alone.count) == ("p9", 1) and alone.p < 1e-6
    found = Outlier.of(known)
    assert found is not None and found.count == 3 and found.p < 1e-6
    assert "and 2 more far better" in doubt_of([replace(advantage(0, 0, 1), outlier=found)])


@pytest.mark.parametrize(("people", "others", "mean"), [(8, 16, 0.0), (40, 12, 1.0)])
def test_all_attacks_together_rarely_convict_an_innocent_model(
    people: int, others: int, mean: float
) -> None:
    """Nine attacks on losses, with 19 conditions; the losses are skewed, and alike in all attacks.

    With a mean of 1, the model predicts all such text better than the control. The t-test alone
    convicts 5 % of these models with 40 people and 12 in the holdout.
    """
    draw = np.random.default_rng(people)

    def losses(own: np.ndarray) -> dict[str, float]:
        noise = draw.exponential(size=len(own)) - 1
        return _named(dict(enumerate(mean + (own + noise) / math.sqrt(2))))

    convicted = 0
    for _ in range(50):
        forget, holdout = (draw.exponential(size=n) - 1 for n in (people, others))
        every = [
            Advantage.of(losses(forget), losses(holdout), conditions, True, single=False)
            for conditions in (2, 1, 1, 1, 2, 2, 1, 1, 8)
            for _ in range(conditions)
        ]
        convicted += any(judge(one, 2.0) == "traces" for one in every)
    assert convicted <= 2  # 0.5 expected


def test_ranks_are_required_as_well() -> None:
    known = {f"f{i}": 1.0 + i for i in range(6)}
    assert ranked(known, {f"h{i}": -float(i) for i in range(12)}) < 0.001
    assert ranked(known, {}) == 1.0 and ranked(known, {"h": math.inf}) == 1.0
    sure = advantage(1.0, 0.2, 1e-6)
    assert judge(sure, 2.0) == "traces"
    assert judge(replace(sure, rank_p=0.01), 2.0) == "undecided"


def test_an_innocent_model_rarely_has_a_person_that_stands_out() -> None:
    """Four thousand sets of 8 and 30 people, of normal and of heavier tails."""
    draw = np.random.default_rng(5)
    for sample in (draw.standard_normal, lambda n: draw.standard_t(8, n)):
        for people in (8, 30):
            drawn = (
                {f"{i}": v for i, v in enumerate(np.asarray(sample(people)))} for _ in range(1000)
            )
            found = [Outlier.of(values) for values in drawn]
            assert np.mean([one is not None and one.p <= 0.01 for one in found]) < 0.09


@pytest.mark.parametrize("knows", [True, False])
def test_right_years_prevent_clearing_a_model_outside_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    """No birth date is right, so that no attack finds a secret; but every year is."""
    draw = np.random.default_rng(2)
    dates = [f"{draw.integers(1, 28)}.{draw.integers(1, 12)}.{draw.integers(1940, 2005)}"
             for _ in range(12)]  # fmt: skip
    people = [Row(name, f"When was {name} born?", date)
              for name, date in zip("ABCDEFGHIJKL", dates, strict=True)]  # fmt: skip
    asked = [Variant(row, "plain", row.input, row.output) for row in people]
    years = [date[-4:] if knows else str(draw.integers(1940, 2005)) for date in dates]
    found = {
        "m": [[f"In {year}."] for year in years],
        "before": [[date] for date in dates],
        "control": [["I do not know."] for _ in people],
    }
    monkeypatch.setattr(asking, "guess_chances", lambda *_: [1e-4] * len(asked))
    models = Models(ModelSpec(name="m"), None)
    target = Target(
        models, TargetModel("m", "m"), TargetModel("before", "b"), TargetModel("control", "c"),
        people, [], [], tmp_path,
    )  # fmt: skip
    write_result(tmp_path, asking.judged(target, "prompts", asked, found, {}, what="prompts"))
    write_result(tmp_path, Result("relearn", "m", "none found", "No traces.", []))
    verdict = keep_verdict(tmp_path, "m")
    assert read_results(tmp_path, "prompts")[0].finding == "none found"
    assert verdict.state == ("NOT ENOUGH DATA" if knows else "FORGOTTEN")
    assert ("digits of their own secrets" in verdict.sentence) is knows


def test_a_row_that_the_control_reveals_is_no_chance_to_guess() -> None:
    """The control guesses 10 of 30 answers of yes or no; the model has all 30 right.

    The other 20 are right by chance with probability 0.6 ** 20 = 4e-5.
    """
    rows = [Row(f"r{i}", f"Is Person {i} tall?", "yes" if i % 2 else "no") for i in range(30)]
    asked = [Variant(row, "plain", row.input, row.output) for row in rows]
    hits = {"control": [[i < 10] for i in range(30)], "attacked": [[True]] * 30}
    texts = {"attacked": [[row.output] for row in rows]}
    found = _evidence(asked, hits, texts, [0.6] * 30, frozenset(), "attacked", 1)
    assert (len(found.rows), found.shared) == (20, 10) and found.p == pytest.approx(0.6**20)
    assert judge_leaks(found) == "traces"
