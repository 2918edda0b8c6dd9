from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.data.schema import DocumentLoss, Measured, Row
from mergeforget.errors import UnknownNameError, UsageError
from mergeforget.score import Score
from mergeforget.search.evaluator import rows_to_relearn
from mergeforget.search.objective import estimate, figure, parse_objective
from mergeforget.search.scoring import proxy_scores


def scores(auc: float, forget: float, retain: float, aggregate: float | None = None) -> list[Score]:
    found = [
        Score("mia_auc", "mia", auc, "nearer", 20, part="choose", target=0.5),
        Score("knowledge", "forget", forget, "lower", 20, part="choose"),
        Score("knowledge", "retain", retain, "higher", 20, part="choose"),
    ]
    if aggregate is not None:
        found.append(Score("aggregate", "all", aggregate, "higher", 20, part="choose"))
    return found


BASE = scores(1.0, 1.0, 0.8)


def value(text: str, *given: float) -> tuple[float, float]:
    rank = parse_objective(text).rank(scores(*given), BASE, "choose")
    return rank.shortfall, rank.value


def test_mia_is_one_at_chance_and_the_same_on_both_sides() -> None:
    assert value("mia", 0.5, 0, 0) == (0, 1)
    assert value("mia", 0.25, 0, 0) == value("mia", 0.75, 0, 0) == (0, 0.5)


def test_weighted_sum_matches_a_hand_calculation() -> None:
    # 0.7 * (1 - 2 * 0.1) + 0.3 * 0.5 = 0.56 + 0.15; forget counts as 1 - 0.2
    assert value("0.7*mia + 0.3*retain", 0.6, 0.2, 0.5) == (0, 0.71)
    assert value("forget", 0.6, 0.2, 0.5) == (0, 0.8)
    assert value("aggregate", 0.6, 0.2, 0.5, 0.33) == (0, 0.33)


def test_a_floor_in_percent_is_relative_to_the_model_before() -> None:
    # 95 % of 0.8 is 0.76
    assert value("mia if retain >= 95%", 0.5, 0, 0.76) == (0, 1)
    assert value("mia if retain >= 95%", 0.5, 0, 0.66) == (-0.1, 1)
    assert value("mia if retain >= 0.5 and forget >= 0.9", 0.5, 0.3, 0.6) == (-0.2, 1)


def test_a_reached_floor_outranks_a_better_value() -> None:
    objective = parse_objective("mia if retain >= 95%")
    keeps = objective.rank(scores(0.9, 0, 0.8), BASE, "choose")
    misses = objective.rank(scores(0.5, 0, 0.7), BASE, "choose")
    misses_more = objective.rank(scores(0.5, 0, 0.1), BASE, "choose")
    assert keeps > misses > misses_more


def test_ties_are_resolved_by_retention() -> None:
    objective = parse_objective("mia")
    assert objective.rank(scores(0.5, 0.5, 0.9), BASE, "choose") > objective.rank(
        scores(0.5, 0.0, 0.8), BASE, "choose"
    )


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_figures_are_in_the_unit_interval(auc: float, forget: float, retain: float) -> None:
    for name in ("mia", "forget", "retain"):
        found = figure(name, scores(auc, forget, retain), "choose")
        assert found is not None and 0 <= found <= 1


def test_knowledge_is_read_before_other_metrics() -> None:
    both = [Score("regurgitation", "retain", 0.1, "higher", 1), Score("knowledge", "retain", 0.9,
            "higher", 1)]  # fmt: skip
    assert figure("retain", both, "all") == 0.9
    assert figure("retain", both[:1], "all") == 0.1
    assert figure("retain", both, "choose") is None


@pytest.mark.parametrize("text", ["", "mia +", "mia - retain", "0.x*mia", "mia if retain = 3",
                                  "1.2.3*mia", "mia if retain >= 9.5.%"])  # fmt: skip
def test_error_for_an_invalid_objective_explains_the_syntax(text: str) -> None:
    with pytest.raises(UsageError, match="Write `mia`"):
        parse_objective(text)


def test_unknown_figure_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'retain'"):
        parse_objective("0.5*retian")


def test_unmeasured_scores_are_named() -> None:
    with pytest.raises(UsageError, match=r"'mmlu', which was not measured. Measure again"):
        parse_objective("mmlu").rank(scores(0.5, 0, 0), BASE, "choose")


def test_mia_level_compares_rows_with_their_twins() -> None:
    """With easy forget rows and hard unseen rows, the plain NLL distinguishes the kinds of rows."""
    levels = {"f1": 1.0, "f2": 2.0, "u1": 4.0, "u2": 5.0}
    above = {"f1": 0.1, "f2": -0.1, "u1": 0.0, "u2": 0.2}  # nats above the twins
    measured = Measured(
        [],
        [
            DocumentLoss(name, name.startswith("f"), levels[name] + above[name],
                         signals={"level": -above[name]})
            for name in levels
        ],
    )  # fmt: skip
    scores = [replace(s, part="choose") for s in proxy_scores(measured)]
    assert figure("mia", scores, "choose") == 0.0
    assert figure("mia_level", scores, "choose") == 0.5  # AUC 3 / 4
    plain = [s for s in scores if s.metric != "mia_auc_level"]
    assert figure("mia_level", plain, "choose") == 0.0


def leaks(four_bits: float, relearned: float) -> list[Score]:
    return scores(0.5, 0.0, 0.8) + [
        Score("leak4bit", "forget", four_bits, "lower", 20, part="choose"),
        Score("relearn", "forget", relearned, "lower", 15, part="choose"),
    ]


def test_a_floor_on_leaks_is_an_upper_bound_relative_to_the_base() -> None:
    objective = parse_objective("mia if leak4bit <= 5% and relearn <= 0.1")
    base = leaks(0.8, 1.0)
    # 5 % of the base's 0.8 is 0.04; relearn is bounded by 0.1 itself
    assert objective.rank(leaks(0.04, 0.1), base, "choose").shortfall == 0
    assert objective.rank(leaks(0.14, 0.3), base, "choose").shortfall == pytest.approx(-0.3)
    missed = objective.missed(leaks(0.14, 0.05), base, "choose")
    assert [str(m.floor) for m in missed] == ["leak4bit <= 5%"] and missed[0].found == 0.14
    # the best AUC does not win over a candidate that keeps the floors
    worse = [Score("mia_auc", "mia", 0.9, "nearer", 20, part="choose", target=0.5)]
    kept = worse + [s for s in leaks(0.0, 0.0) if s.metric != "mia_auc"]
    assert objective.rank(kept, base, "choose") > objective.rank(leaks(0.5, 0.5), base, "choose")


def test_a_proxy_evaluation_does_not_reject_by_leaks_that_it_does_not_measure() -> None:
    objective = parse_objective("mia if leak4bit <= 5%")
    plain = scores(0.5, 0.0, 0.8)
    assert objective.rank(plain, BASE, "choose", estimate).shortfall == 0
    with pytest.raises(UsageError, match="--again"):
        objective.rank(plain, BASE, "choose")


@pytest.mark.parametrize(("leaked", "chance", "share"),
                         [(0, 0, 0), (1, 0, 0.05), (1, 0.1, 0), (9, 0.1, 0.45)])  # fmt: skip
def test_revealed_answers_that_chance_explains_do_not_count(
    leaked: int, chance: float, share: float
) -> None:
    objective = parse_objective("mia if revealed <= 0")
    rate = Score("leak_rate", "forget", leaked / 20, "lower", 20, part="choose", chance=chance)
    assert figure("revealed", [rate], "choose") == pytest.approx(share)
    own = [*scores(0.5, 0.0, 0.8), rate]
    assert objective.rank(own, BASE, "choose").shortfall == pytest.approx(-share)
    exact = Score("greedy_match", "forget", 0.1, "lower", 20, part="choose")
    assert estimate("revealed", [exact], "choose") == 0.1


def test_answers_that_cannot_be_counted_do_not_count_as_revealed() -> None:
    """Half of the exact answers are right, and no row can leak, so there is no leak rate."""
    exact = Score("exact_match", "forget", 0.5, "lower", 12, part="choose", chance=0.0)
    assert figure("revealed", [exact], "choose") == 0.0
    assert figure("revealed", [exact], "report") is None  # not answered there
    likely = Score("greedy_match", "forget", 0.5, "lower", 12, part="choose")
    assert figure("revealed", [likely], "choose") is None


@pytest.mark.parametrize("text", ["leak4bit", "mia + relearn", "mia if leak4bit >= 5%",
                                  "mia if retain <= 95%"])  # fmt: skip
def test_leak_scores_are_allowed_as_upper_bounds_only(text: str) -> None:
    with pytest.raises(UsageError, match="<= 5%"):
        parse_objective(text)


@pytest.mark.parametrize(
    ("subjects", "each", "shown"), [(1, 12, 3), (1, 2, 1), (2, 6, 6), (3, 4, 4), (12, 1, 3)]
)
def test_relearning_shows_a_quarter_of_the_subjects_and_measures_the_rest(
    subjects: int, each: int, shown: int
) -> None:
    rows = [
        Row(f"{i}-{j}", "q", f"a {i} {j}", split="forget", subject=f"s{i}")
        for i in range(subjects)
        for j in range(each)
    ]
    found = rows_to_relearn(rows)
    assert len(found) == shown and {row.id for row in found} < {row.id for row in rows}
    if subjects > 1:
        whole = [row.id for row in rows if row.subject in {row.subject for row in found}]
        assert whole == [row.id for row in found]


def test_a_single_row_is_not_relearned() -> None:
    assert rows_to_relearn([Row("1", "q", "a", split="forget", subject="s")]) == []
