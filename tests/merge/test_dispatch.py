"""Compiled loops give numpy's bits, and numpy does the work where they are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import mergeforget.merge.kernels.dispatch as speedup
import mergeforget.merge.kernels.thresholds as select
from mergeforget.candidate import Candidate
from mergeforget.errors import NumericError
from mergeforget.merge.blockwise import in_memory, merge_whole
from mergeforget.merge.checkpoint import bf16_blocks
from mergeforget.merge.checkpoint.full import merge_models
from mergeforget.merge.checkpoint.tensor_jobs import Output
from mergeforget.merge.kernels.rng import NamedGenerator
from mergeforget.merge.kernels.sign_election import consensus, weighted_sum
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.tensors import round_to_bfloat16

MEASURED = {"grams", "importance", "shares", "base_weights"}
IN_BLOCKS = [
    name
    for name in MERGE_METHODS.names()
    if not {"grams", "importance", "shares", "base_weights"}
    & set(MERGE_METHODS.get(name).parameters)
    and name != "passthrough"
]
compiled = pytest.importorskip(
    "mergeforget.merge.kernels.numba_loops", reason="numba is not installed"
)
halves = pytest.importorskip("mergeforget.merge.kernels.numba_bf16", reason="needs numba")
floats = st.floats(-4, 4, width=32) | st.integers(-2, 2).map(float)
stacks = st.tuples(st.integers(1, 4), st.integers(1, 60)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=floats)
)


def both(act: Callable[[], Any]) -> tuple[Any, Any]:
    """What numpy and what the compiled loops give."""
    before, results = speedup._loops, []
    for module in (None, compiled):
        speedup._loops = module
        try:
            results.append(act())
        finally:
            speedup._loops = before
    return results[0], results[1]


def assert_same_bits(act: Callable[[], Any]) -> None:
    ours, theirs = both(act)
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@given(stacks, st.floats(0.01, 1.0))
def test_trim_is_bit_identical_with_compiled_loops(stack: Any, density: float) -> None:
    assert_same_bits(lambda: trim(stack, density))


@pytest.mark.parametrize("sign", ["total", "count"])
@pytest.mark.parametrize("divide", ["count", "weights", "none"])
@pytest.mark.parametrize("vote", ["unweighted", "weighted"])
@settings(max_examples=25)
@given(stack=stacks, data=st.data())
def test_consensus_is_bit_identical_with_compiled_loops(
    sign: Any, vote: Any, divide: Any, stack: Any, data: Any
) -> None:
    weights = data.draw(arrays(np.float64, len(stack), elements=st.floats(-2, 2)))
    scale = data.draw(st.sampled_from([1.0, 0.3]))
    assert_same_bits(
        lambda: consensus(stack, weights, sign=sign, vote=vote, divide=divide, scale=scale)
    )
    assert_same_bits(lambda: weighted_sum(stack, weights, normalize=True, scale=scale))


def test_tensors_larger_than_a_chunk_are_bit_identical() -> None:
    draw = np.random.default_rng(0)
    stack, weights = draw.standard_normal((3, 5000)).astype(np.float32), np.array([1, -0.5, 0.3])
    assert_same_bits(lambda: consensus(stack, weights))
    assert_same_bits(lambda: weighted_sum(stack, weights))
    assert compiled.squares(stack[0]) == pytest.approx(np.square(stack[0], dtype="f8").sum())


@pytest.mark.parametrize("method", IN_BLOCKS)
def test_every_method_is_bit_identical_in_blocks_at_many_densities(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "SMALL", 500)
    monkeypatch.setattr(select, "SAMPLE", 200)
    monkeypatch.setattr(select.blocks, "__defaults__", (500,))
    stack = np.random.default_rng(1).integers(-9, 9, (2, 60, 40)).astype(np.float32)
    stack[:, ::3] *= np.float32(0.37)
    densities = (0.1, 0.3, 0.5, 0.7, 1.0) if method not in ("della", "della_linear") else (0.5, 0.6)
    takes = MERGE_METHODS.get(method).parameters
    given = {"t": 0.5} if method == "nearswap" else {}
    many = [
        Candidate(method, d if "density" in takes else None, arguments=given) for d in densities
    ]
    assert_same_bits(lambda: merge_whole(in_memory(stack), np.array([1.0, -0.5]), many, "x"))


def test_bfloat16_conversion_is_exact_in_both_directions() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(1 << 16, np.uint32)
    compiled.widen(every, wide)
    assert np.array_equal(wide, every.astype(np.uint32) << 16)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits[:6] = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x00018000]
    short = np.empty(1 << 16, np.uint16)
    compiled.narrow(bits, short)
    assert np.array_equal(short, round_to_bfloat16(bits.view(np.float32)))
    found = [compiled.all_finite(bits[i : i + 1]) for i in range(6)]
    assert found == [False] * 4 + [True] * 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_models: Callable[..., Any]) -> list[Path]:
    found: list[Path] = save_models(tmp_path_factory.mktemp("models"), dtype=torch.bfloat16)
    return found


OF_MERGEKIT = {"vote": "weighted", "divide": "weights", "scale": 0.7}
L1 = {"rescale": "l1"}


@pytest.mark.parametrize(
    ("method", "density", "arguments"),
    [
        ("linear", None, {}),
        ("task_arithmetic", None, {}),
        ("ties", 0.5, {}),
        ("ties", 0.3, OF_MERGEKIT),
        ("ties", 0.8, {"sign": "count", "divide": "none"}),
        ("ties", 1.0, {}),
        ("magnitude_prune", 0.4, {}),
        ("dare_ties", 0.5, {}),
        ("dare_ties", 0.3, OF_MERGEKIT | L1),
        ("dare_linear", 0.6, L1 | {"normalize": True}),
        ("dare_linear", 1.0, L1),
    ],
)
@pytest.mark.parametrize("held", [True, False])
def test_whole_models_are_bit_identical_in_blocks(
    models: list[Path],
    tmp_path: Path,
    method: str,
    density: float | None,
    arguments: dict[str, Any],
    held: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of an odd number of entries; thresholds from a sample; equal magnitudes at the cut."""
    for module in (select, bf16_blocks):
        monkeypatch.setattr(module, "SMALL", 300)
    monkeypatch.setattr(select, "SAMPLE", 200)
    monkeypatch.setattr(select.blocks, "__defaults__", (333,))
    monkeypatch.setattr(bf16_blocks, "HELD", 1 << 20 if held else 0)
    candidate = Candidate(method, density, weights=(0.7, -0.3), arguments=arguments)

    def merged() -> Any:
        found = merge_models(models[1:], models[0], candidate, tmp_path / "m", Output(threads=1))
        roundings.append(found.rounding)
        return np.frombuffer((tmp_path / "m" / "model.safetensors").read_bytes(), np.uint8)

    roundings: list[Any] = []
    assert_same_bits(merged)
    assert roundings[0] == pytest.approx(roundings[1], rel=1e-5)


@pytest.mark.parametrize("method", ["linear", "dare_ties"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_whole_models_are_bit_identical_in_another_dtype(
    models: list[Path], tmp_path: Path, method: str, dtype: str
) -> None:
    candidate = Candidate(method, 0.5 if "ties" in method else None, weights=(0.7, -0.3))

    def merged() -> Any:
        merge_models(models[1:], models[0], candidate, tmp_path / "m", Output(dtype=dtype))
        return np.frombuffer((tmp_path / "m" / "model.safetensors").read_bytes(), np.uint8)

    assert_same_bits(merged)


def test_numbers_are_drawn_as_numpy_draws_them() -> None:
    generator = NamedGenerator(3, "x")
    mask, waiting = np.empty(4099, np.uint8), np.zeros(2, np.uint32)
    state, words = generator.state(1), np.empty(halves.CHUNK // 2, np.uint64)
    for part in (slice(0, 1), slice(1, 700), slice(700, 2748), slice(2748, 4099)):
        halves.choose(state, waiting, generator.limit(0.4), words, mask[part])
    assert np.array_equal(mask != 0, generator.below(0.4, 1, 4099))


@pytest.mark.parametrize("arguments", [{}, {"normalize": True, "scale": 0.3}])
def test_whole_models_without_a_base_are_bit_identical(
    models: list[Path], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    candidate = Candidate("linear", weights=(0.7, 0.5, -0.1), arguments=arguments)

    def merged() -> bytes:
        merge_models(models, None, candidate, tmp_path / "m")
        return (tmp_path / "m" / "model.safetensors").read_bytes()

    assert_same_bits(lambda: np.frombuffer(merged(), np.uint8))


def test_nan_is_named_where_the_sum_is_compiled(
    tmp_path: Path, save_models: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(speedup, "_loops", compiled)
    base, one, two = save_models(tmp_path, dtype=torch.bfloat16)
    tensors = load_file(two / "model.safetensors")
    name = next(n for n, x in tensors.items() if x.dim() == 2)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, two / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericError, match=f"{name} of {two} contains NaN"):
        merge_models([one, two], base, Candidate("linear"), tmp_path / "out")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(speedup, "_loops", None)
    yield


def test_compiled_loops_are_loaded_for_large_merges_only(unloaded: None) -> None:
    speedup.expect(1000)
    assert speedup.loops() is None
    speedup.expect(speedup.WORTH)
    stack: Any = np.ones((2, 3), np.float32)
    found: ModuleType | None = speedup.loops(stack)
    assert found is compiled
    assert speedup.loops(stack.astype(np.float64)) is None
    assert speedup.loops(stack[:, ::2]) is None
    assert speedup.loops(torch.ones(2)) is None


def test_numpy_is_used_without_numba(unloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import mergeforget.merge.kernels as package

    monkeypatch.delattr(package, "numba_loops")
    monkeypatch.setitem(sys.modules, "mergeforget.merge.kernels.numba_loops", None)
    speedup.expect(speedup.WORTH)
    assert speedup.loops() is None


def test_random_draws_do_not_depend_on_the_implementation(unloaded: None) -> None:
    stack = np.random.default_rng(0).standard_normal((2, 30, 20)).astype(np.float32)
    fn = MERGE_METHODS.get("dare_ties").fn
    assert_same_bits(lambda: fn(stack, np.ones(2), density=0.4, generator=NamedGenerator(0, "x")))
