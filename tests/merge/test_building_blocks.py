"""What every step and every method promises, on numpy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mergeforget.errors import DensityError, UsageError
from mergeforget.merge.blockwise import in_memory
from mergeforget.merge.kernels.arrays import as_array, like
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sign_election import disjoint_mean, elect
from mergeforget.merge.kernels.sparsify import drop, trim
from mergeforget.merge.kernels.thresholds import Cuts, kept_count, thresholds_at
from mergeforget.merge.methods import MERGE_METHODS

WHOLE = st.integers(-4, 4).map(float)  # many equal magnitudes, and sums exact in any order
densities = st.floats(0.001, 1.0)


def stacks(n: int = 2) -> st.SearchStrategy[Any]:
    shapes = st.tuples(st.just(n), st.integers(1, 6), st.integers(1, 6))
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=WHOLE))


def test_trim_keeps_the_largest_entries_of_a_worked_example() -> None:
    # int(0.5 * 4) = 2 of |1|, |-3|, |2|, |-2|: the 3, and of the two 2s the first
    stack = np.array([[1.0, -3.0, 2.0, -2.0]], np.float32)
    assert as_array(trim(stack, 0.5)).tolist() == [[0.0, -3.0, 2.0, 0.0]]


def test_election_matches_a_worked_example() -> None:
    # places: 1-1.5 < 0 -> minus; 2-1 > 0 -> plus; 1-1 = 0 counts as plus; 0 never agrees
    stack = np.array([[1.0, 2.0, 1.0, 0.0], [-1.5, -1.0, -1.0, 3.0]])
    assert as_array(elect(stack)).tolist() == [
        [False, True, True, False],
        [True, False, False, True],
    ]
    # by count, every position except the last is a tie, so plus is elected everywhere
    assert as_array(elect(stack, "count")).tolist() == [
        [True, True, True, False],
        [False] * 3 + [True],
    ]


def test_ties_returns_the_example_of_the_specification() -> None:
    # tau = [1, -1.5], w = [2, 1]: unweighted, minus wins, and one agrees: 1 * -1.5 / 1
    stack, weights = np.array([[1.0], [-1.5]]), np.array([2.0, 1.0])
    assert MERGE_METHODS.get("ties").fn(stack, weights, density=1.0) == [-1.5]
    # weighted, 2 - 1.5 > 0: plus wins: 2 * 1 = 2, over its weight 2 when normalised
    agree = elect(stack * weights[:, None])
    assert disjoint_mean(stack, weights, agree, divide="none") == [2.0]
    assert disjoint_mean(stack, weights, agree, divide="weights") == [1.0]


@given(stacks(), densities)
def test_trim_keeps_exactly_k_entries_and_breaks_ties_by_index(stack: Any, density: float) -> None:
    trimmed = trim(stack, density)
    k = kept_count(density, stack[0].size)
    for tensor, kept in zip(stack, trimmed, strict=True):
        tensor, kept = tensor.ravel(), kept.ravel()
        order = np.lexsort((np.arange(tensor.size), -np.abs(tensor)))[:k]
        wanted = np.zeros_like(tensor)
        wanted[order] = tensor[order]
        assert np.array_equal(kept, wanted)


@given(stacks(3), st.lists(densities, min_size=1, max_size=5))
def test_trimming_with_known_thresholds_is_bit_identical(stack: Any, many: list[float]) -> None:
    source = in_memory(stack)
    for density, found in zip(many, thresholds_at(source, many), strict=True):
        assert np.array_equal(trim(stack, density, Cuts(found)), trim(stack, density))


@given(stacks(), densities, densities)
def test_entries_kept_at_a_density_are_kept_at_larger_ones(
    stack: Any, one: float, other: float
) -> None:
    low, high = sorted([one, other])
    kept = NamedGenerator(0, "x").below(low, 0, stack.size)
    assert not (kept & ~NamedGenerator(0, "x").below(high, 0, stack.size)).any()


def test_drop_keeps_the_share_and_the_mean() -> None:
    stack = np.ones((2, 400, 500), np.float32)
    dropped = as_array(drop(stack, 0.3, NamedGenerator(0, "x")))
    # 4e5 draws: the share's standard deviation is sqrt(.3 * .7 / 4e5) = 7e-4
    assert abs(np.count_nonzero(dropped) / dropped.size - 0.3) < 4e-3
    assert abs(dropped.mean() - 1) < 0.015
    l1 = drop(stack, 0.3, NamedGenerator(0, "x"), rescale="l1")
    np.testing.assert_allclose(np.abs(l1).sum((1, 2)), np.abs(stack).sum((1, 2)), rtol=1e-4)
    assert set(np.unique(drop(stack, 0.3, NamedGenerator(0, "x"), rescale="none"))) == {0.0, 1.0}


def test_plain_lists_are_accepted_as_in_peft() -> None:
    from mergeforget.merge.methods.ties import ties

    draw = np.random.default_rng(0)
    pair = [draw.standard_normal((3, 4)).astype(np.float32) for _ in range(2)]
    wanted = ties(np.stack(pair), np.ones(2), density=0.5)
    assert np.array_equal(ties(pair, [1, 1], density=0.5), wanted)
    theirs = ties([torch.from_numpy(x) for x in pair], [1, 1], density=0.5)
    assert isinstance(theirs, torch.Tensor) and np.array_equal(theirs.numpy(), wanted)


def test_different_tensor_names_give_different_random_patterns() -> None:
    first = NamedGenerator(0, "a").below(0.5, 0, 1000)
    for other in (
        NamedGenerator(0, "b").below(0.5, 0, 1000),
        NamedGenerator(1, "a").below(0.5, 0, 1000),
    ):
        assert not np.array_equal(first, other)
    assert not np.array_equal(first, NamedGenerator(0, "a").below(0.5, 1, 1000))


@given(st.lists(st.integers(0, 9), max_size=8))
def test_random_numbers_do_not_depend_on_the_block_size(parts: list[int]) -> None:
    generator = NamedGenerator(0, "a")
    drawn = [generator.numbers(0, count) for count in parts]
    whole = NamedGenerator(0, "a").numbers(0, sum(parts))
    assert np.concatenate([*drawn, np.empty(0, np.uint32)]).tolist() == whole.tolist()


@pytest.mark.parametrize("density", [0.0, 1.5, -0.1, float("nan")])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    stack = np.ones((2, 4), np.float32)
    for act in (lambda: trim(stack, density), lambda: drop(stack, density, NamedGenerator(0, ""))):
        with pytest.raises(DensityError):
            act()


def test_unknown_argument_values_are_refused() -> None:
    stack, weights = np.ones((2, 4), np.float32), np.ones(2)
    with pytest.raises(UsageError, match="total or count"):
        elect(stack, "majority")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="count, weights, none"):
        disjoint_mean(stack, weights, elect(stack), divide="mean")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="density, l1, none"):
        drop(stack, 0.5, NamedGenerator(0, ""), rescale="l2")  # type: ignore[arg-type]


def call(name: str, stack: Any, weights: Any, density: float = 0.6) -> Any:
    takes = MERGE_METHODS.get(name).parameters
    given: dict[str, Any] = {"density": density} if "density" in takes else {}
    if "generator" in takes:
        given["generator"] = NamedGenerator(0, "x")
    if "grams" in takes:
        inputs = np.random.default_rng(2).standard_normal((2, 30, stack.shape[-1]))
        given["grams"] = like(np.einsum("nti,ntj->nij", inputs, inputs), stack)
    for key, n in (("importance", 1 if "contrast" in takes else 2), ("contrast", 1)):
        if key in takes:
            drawn = np.random.default_rng(n).random((n, *stack.shape[1:])).astype(np.float32)
            given[key] = like(drawn, stack)
    if name == "nearswap":
        given["t"] = 0.5
    if "shares" in takes:
        given["shares"] = [0.5, 2.0]
    if "base_weights" in takes:
        drawn = np.random.default_rng(3).standard_normal(stack.shape[1:]).astype(np.float32)
        given["base_weights"] = like(drawn, stack)
    if name in ("passthrough", "arcee_fusion"):
        stack, weights = stack[:1], weights[:1]
    return MERGE_METHODS.get(name).fn(stack, weights, **given)


@pytest.mark.parametrize("name", MERGE_METHODS.names())
def test_every_method_keeps_shape_dtype_and_its_inputs(name: str) -> None:
    stack = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)
    before = stack.copy()
    merged = call(name, stack, np.array([1.0, 0.5]))
    assert merged.shape == (5, 7) and merged.dtype == np.float32 and np.isfinite(merged).all()
    assert np.array_equal(stack, before)
    assert np.array_equal(merged, call(name, stack, np.array([1.0, 0.5])))


@pytest.mark.parametrize("name", ["karcher", "multislerp"])
def test_weights_that_add_up_to_zero_are_refused_where_they_are_normalised(name: str) -> None:
    stack = np.random.default_rng(1).standard_normal((2, 6, 4))
    with pytest.raises(UsageError, match="The weights 1, -1 add up to 0"):
        call(name, stack, np.array([1.0, -1.0]))
    assert not call(name, np.zeros((2, 6, 4)), np.array([1.0, 0.5])).any()
    assert not call(name, stack * [[[0]], [[1]]], np.array([1.0, 0.0])).any()


@pytest.mark.parametrize("turned", [False, True])
def test_robust_merge_does_not_depend_on_the_signs_of_an_svd(
    turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = np.random.default_rng(1).standard_normal((2, 6, 4))
    plain, svd = call("robust_merge", stack, np.array([1.0, 0.5])), np.linalg.svd
    calls = iter(range(100))

    def other(x: Any, **how: Any) -> Any:
        u, s, vt = svd(x, **how)
        signs = np.array([1, -1, 1, -1]) * (-1) ** (next(calls) if turned else 0)
        return u * signs, s, vt * signs[:, None]

    monkeypatch.setattr(np.linalg, "svd", other)
    np.testing.assert_allclose(call("robust_merge", stack, np.array([1.0, 0.5])), plain, atol=1e-12)


@pytest.mark.parametrize("name", MERGE_METHODS.names())
def test_every_method_gives_equal_results_on_torch_tensors(name: str) -> None:
    stack = np.random.default_rng(1).standard_normal((2, 5, 7)).astype(np.float32)
    ours = call(name, stack, np.array([1.0, -0.5]))
    theirs = call(name, torch.from_numpy(stack), torch.tensor([1.0, -0.5]))
    assert theirs.dtype == torch.float32
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-6, atol=1e-6)
