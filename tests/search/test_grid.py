from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.candidate import Candidate
from mergeforget.errors import UsageError
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.recipe import SearchSpec
from mergeforget.search.budget import parse_budget
from mergeforget.search.grid import ends_first, grid, left_out, usable_densities
from mergeforget.search.optuna_study import axes


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


DATA = ["adamerging", "fisher", "perta", "regmean", "regmean_pp"]


@pytest.mark.parametrize("method", [*DATA, "arcee_fusion", "nearswap", "passthrough"])
def test_methods_that_a_search_cannot_run_are_refused_by_name(method: str) -> None:
    with pytest.raises(UsageError, match=f"with {method}: .*leave {method} out of --methods") as e:
        grid(SearchSpec(methods=["ties", method]))
    assert "--data" not in str(e.value) and "--full" not in str(e.value)


@pytest.mark.parametrize("method", MERGE_METHODS.names())
def test_every_other_method_has_candidates(method: str) -> None:
    if method not in (*DATA, "arcee_fusion", "nearswap", "passthrough"):
        assert {c.method for c in grid(SearchSpec(methods=[method]))} == {method}


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_densities_that_a_method_cannot_use_are_left_out_with_a_message(method: str) -> None:
    """Entries are kept with probabilities density -+ 0.15, which must be in (0, 1)."""
    spec = SearchSpec(methods=[method, "ties"], densities=[0.1, 0.2, 0.8, 0.9, 1.0])
    found = {c.density for c in grid(spec) if c.method == method}
    assert found == {0.2, 0.8, 1.0} == set(usable_densities(Candidate(method), spec.densities))
    assert len([c for c in grid(spec) if c.method == "ties"]) == 5
    assert left_out(spec) == (
        f"Leaving out {method}-delta-d0.10, {method}-delta-d0.90: density 0.1 and epsilon 0.15 "
        "give keep probabilities from -0.05 to 0.25; both must be in (0, 1)."
    )
    assert left_out(SearchSpec()) == ""
    assert axes(spec)["density"] == spec.densities
    assert axes(spec.model_copy(update={"methods": [method]}))["density"] == [0.2, 0.8, 1.0]
    with pytest.raises(UsageError, match="give other --densities, or leave"):
        grid(SearchSpec(methods=[method], densities=[0.1]))
