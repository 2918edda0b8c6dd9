"""Cuts found in blocks are those found on whole tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mergeforget.merge.kernels.thresholds as select
from mergeforget.candidate import Candidate
from mergeforget.merge.blockwise import in_memory, merge_whole
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.thresholds import find_cuts, kept_count
from mergeforget.merge.methods import MERGE_METHODS

MEASURED = {"grams", "importance", "shares", "base_weights"}
IN_BLOCKS = [
    name
    for name in MERGE_METHODS.names()
    if not {"grams", "importance", "shares", "base_weights"}
    & set(MERGE_METHODS.get(name).parameters)
    and name != "passthrough"
]
ARGUMENTS: dict[str, dict[str, Any]] = {"nearswap": {"t": 0.5}}
DENSITIES = [1e-6, 0.05, 0.3, 0.5, 0.77, 0.999, 1.0]
DRAW = np.random.default_rng(0)
SHAPE = (120, 90)
STACKS = {
    "normal": DRAW.standard_normal((2, *SHAPE)),
    "many equal": DRAW.integers(-3, 4, (2, *SHAPE)).astype(float),
    "mostly zero": DRAW.standard_normal((2, *SHAPE)) * (DRAW.random((2, *SHAPE)) < 0.2),
    "rows of other scales": DRAW.standard_normal((2, *SHAPE)) * np.geomspace(1, 1e9, 120)[:, None],
    "a few rows only": DRAW.standard_normal((2, *SHAPE)) * (np.arange(120) % 40 == 1)[:, None],
    "all zero": np.zeros((2, *SHAPE)),
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in blocks, and sample so few entries that brackets often miss."""
    monkeypatch.setattr(select, "SMALL", 1000)
    monkeypatch.setattr(select, "SAMPLE", 200)
    monkeypatch.setattr(select.blocks, "__defaults__", (1000,))


@pytest.mark.parametrize("kind", STACKS)
def test_thresholds_computed_in_blocks_equal_those_of_the_whole_tensor(
    kind: str, small_blocks: None
) -> None:
    stack = STACKS[kind].astype(np.float32)
    found = select.thresholds_at(in_memory(stack), DENSITIES)
    ranks = [kept_count(d, stack[0].size) for d in DENSITIES]
    for i, tensor in enumerate(stack):
        wanted = find_cuts(np.abs(tensor.ravel()), ranks)
        assert [cuts[i] for cuts in found] == wanted


@pytest.mark.parametrize("method", IN_BLOCKS)
@pytest.mark.parametrize("kind", STACKS)
def test_a_method_is_bit_identical_in_blocks(
    kind: str, method: str, request: pytest.FixtureRequest
) -> None:
    source = in_memory(STACKS[kind].astype(np.float32))
    takes = MERGE_METHODS.get(method).parameters
    given = ARGUMENTS.get(method, {})
    many = [
        Candidate(method, d if "density" in takes else None, arguments=given) for d in (0.3, 0.6)
    ]
    weights: Any = np.array([1.0, -0.5])
    whole = merge_whole(source, weights, many, "x")
    request.getfixturevalue("small_blocks")
    for one, other in zip(whole, merge_whole(source, weights, many, "x"), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
def test_norms_are_restored_bit_identically_in_blocks(method: str, small_blocks: None) -> None:
    stack = STACKS["rows of other scales"].astype(np.float32)
    candidate = Candidate(method, 0.6, arguments={"rescale": "l1"})
    weights: Any = np.array([1.0, -0.5])
    [merged] = merge_whole(in_memory(stack), weights, [candidate], "x")
    fn, generator = MERGE_METHODS.get(method).fn, NamedGenerator(0, "x")
    wanted = fn(stack, weights, density=0.6, generator=generator, rescale="l1")
    assert np.array_equal(merged, wanted)
