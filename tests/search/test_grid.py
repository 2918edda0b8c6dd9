from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.errors import UsageError
from mergeforget.recipe import SearchSpec
from mergeforget.search.budget import parse_budget
from mergeforget.search.grid import ends_first, grid


@given(st.lists(st.integers(), unique=True))
def test_spread_keeps_every_value(values: list[int]) -> None:
    assert sorted(ends_first(values)) == sorted(values)


def test_densities_are_ordered_from_the_ends_to_the_middle() -> None:
    assert ends_first([1, 2, 3, 4, 5]) == [1, 5, 3, 2, 4]
    assert ends_first([1]) == [1] and ends_first([]) == []


def test_every_combination_occurs_once() -> None:
    spec = SearchSpec(
        methods=["ties", "linear"],
        densities=[0.2, 0.5],
        weights=[[1, 1], [1, 0.5]],
        spaces=["factors", "delta"],
    )
    names = [c.name for c in grid(spec)]
    assert len(names) == len(set(names)) == 2 * 2 * 2 + 2 * 2  # linear has no density
    assert "ties-delta-d0.20-w1,0.5" in names and "linear-factors" in names


def test_peft_names_are_aliases_of_the_same_candidate() -> None:
    spec = SearchSpec(methods=["ties_svd", "ties"], densities=[0.5], spaces=["delta"])
    assert [c.name for c in grid(spec)] == ["ties-delta-d0.50"]


def test_unknown_method_is_named_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="Did you mean 'ties'"):
        grid(SearchSpec(methods=["tie"]))


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="2 adapters but 3 weights"):
        grid(SearchSpec(weights=[[1, 1, 1]]))


def test_budget_in_candidates_and_in_time() -> None:
    assert parse_budget("20").candidates == 20
    assert parse_budget("90s").seconds == 90 and parse_budget("1.5h").seconds == 5400
    assert parse_budget(None).allows(10**6)
    assert parse_budget("2").allows(1) and not parse_budget("2").allows(2)


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "ten", "10d", "0m"])
def test_an_invalid_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither a number of candidates"):
        parse_budget(text)
