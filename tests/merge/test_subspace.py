"""Subspace methods: the same from factors as from dense deltas, and their defining properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.methods import MERGE_METHODS, traits

BY_FACTORS = [name for name in MERGE_METHODS.names() if traits(name).factors]
AS_DENSE = [name for name in BY_FACTORS if name != "robust_merge"]  # which acts on A and B
FREE_SIGNS = ("knots", "core_space")  # the sign of a singular vector is free
DRAW = np.random.default_rng(0)


def adapters(n: int = 2, rank: int = 3, shape: tuple[int, int] = (12, 10)) -> list[Adapter]:
    made = []
    for i in range(n):
        a = DRAW.standard_normal((rank, shape[1])).astype(np.float32)
        b = DRAW.standard_normal((shape[0], rank)).astype(np.float32)
        config = {"peft_type": "LORA", "r": rank}
        made.append(Adapter(f"a{i}", {"x.q_proj": LowRankDelta(a, b, 0.7)}, config))
    return made


def stack_of(given: list[Adapter]) -> Any:
    return np.stack([adapter.deltas["x.q_proj"].dense() for adapter in given])


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", AS_DENSE)
def test_factors_give_the_dense_result(name: str, n: int) -> None:
    given, weights = adapters(n), (1.0, 0.5, 2.0)[:n]
    entry = MERGE_METHODS.get(name)
    density = 0.6 if "density" in entry.parameters else None
    arguments: dict[str, Any] = {"size": 4} if name == "compress_merge" else {}
    candidate = Candidate(name, density, weights, "delta", rank=10, arguments=arguments)
    found = merge_adapters(given, candidate).adapter.deltas["x.q_proj"].dense()
    keywords = arguments | ({} if density is None else {"density": density})
    dense = entry.fn(stack_of(given), np.array(weights), **keywords)
    if name in FREE_SIGNS:
        assert np.linalg.norm(found) == pytest.approx(float(np.linalg.norm(dense)), rel=0.5)
        return
    np.testing.assert_allclose(found, dense, atol=2e-5)


@pytest.mark.parametrize("name", BY_FACTORS)
def test_one_adapter_keeps_its_column_space(name: str) -> None:
    [one] = adapters(1)
    density = 1.0 if "density" in MERGE_METHODS.get(name).parameters else None
    merged = merge_adapters([one], Candidate(name, density, (1.0,), "delta")).adapter
    found, delta = merged.deltas["x.q_proj"].dense(), one.deltas["x.q_proj"].dense()
    if not name.startswith("iso"):  # which changes the singular values
        np.testing.assert_allclose(found, delta, atol=1e-5)
    u = np.linalg.svd(delta)[0][:, :3]
    np.testing.assert_allclose(u @ (u.T @ found), found, atol=1e-5)


def test_iso_c_has_equal_singular_values_and_the_sum_s_nuclear_norm() -> None:
    given = adapters(2)
    found = merge_adapters(given, Candidate("iso_c", space="delta", rank=6)).adapter
    s = np.linalg.svd(found.deltas["x.q_proj"].dense(), compute_uv=False)
    wanted = np.linalg.svd(stack_of(given).sum(0), compute_uv=False)
    np.testing.assert_allclose(s[:6], wanted.sum() / 6, rtol=1e-4)
    assert s[6] < 1e-4


def test_iso_cts_adds_task_specific_directions() -> None:
    given = adapters(2)
    candidate = Candidate("iso_cts", space="delta", rank=6, arguments={"common": 0.5})
    found = merge_adapters(given, candidate).adapter.deltas["x.q_proj"].dense()
    s = np.linalg.svd(found, compute_uv=False)
    # rank 6: int(.5 * 6 / 2) = 1 direction of each task, 4 common ones, all of one length
    np.testing.assert_allclose(s[:6], s[0], rtol=1e-4)
    u = np.linalg.svd(stack_of(given).sum(0))[0][:, :4]
    np.testing.assert_allclose(np.linalg.svd(u.T @ found, compute_uv=False)[:4] > 0.3 * s[0], True)


def test_tsv_m_of_orthogonal_deltas_keeps_each_leading_half() -> None:
    """Two deltas without common directions: the leading singular value of each is kept."""
    x, y = np.zeros((2, 6, 5), np.float32)
    x[0, 0], x[1, 1], y[2, 2], y[3, 3] = 3, 1, 2, 0.5
    merged = MERGE_METHODS.get("tsv_m").fn(np.stack([x, y]), [1.0, 2.0])
    wanted = np.zeros((6, 5))
    wanted[0, 0], wanted[2, 2] = 3, 4  # the second times its weight
    np.testing.assert_allclose(merged, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts"])
@pytest.mark.parametrize("case", ["equal", "a zero", "a multiple", "all zero"])
def test_a_merge_has_no_directions_that_no_input_has(name: str, case: str) -> None:
    """Equal singular vectors were made orthogonal by arbitrary ones, and a zero delta added one."""
    draw = np.random.default_rng(1)
    x = draw.standard_normal((12, 2)) @ draw.standard_normal((2, 10))
    stack = np.stack([x, {"equal": x, "a zero": 0 * x, "a multiple": -2 * x}.get(case, x)])
    stack = 0 * stack if case == "all zero" else stack
    merge = MERGE_METHODS.get(name).fn
    found = merge(stack, np.ones(2))
    u, s, vt = np.linalg.svd(x)
    inside = u[:, :2] @ u[:, :2].T @ found @ vt[:2].T @ vt[:2]
    np.testing.assert_allclose(found, inside, atol=1e-9)
    theirs = merge(torch.from_numpy(stack), torch.ones(2, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found, theirs, atol=1e-9)
    if name == "tsv_m" and case in ("equal", "a zero"):  # the leading half of x
        np.testing.assert_allclose(found, s[0] * np.outer(u[:, 0], vt[0]), atol=1e-9)


@pytest.mark.parametrize(("rank", "common", "specific"), [(5, 0.8, 1), (10, 0.9, 1), (4, 0.0, 4)])
def test_iso_cts_takes_its_share_of_each_task(rank: int, common: float, specific: int) -> None:
    """(1 - 0.8) * 10 / 2 is 0.99... in floating point, and no direction of a task was taken."""
    d = np.random.default_rng(0).standard_normal((2, 30, rank))
    d = d @ np.random.default_rng(1).standard_normal((2, rank, 25))
    found = MERGE_METHODS.get("iso_cts").fn(d, np.ones(2), common=common)
    u, s, vt = np.linalg.svd(d.sum(0))
    kept = 2 * rank - 2 * specific
    rest = [x - u[:, :kept] @ u[:, :kept].T @ x for x in d]
    values = [*s[:kept], *(np.linalg.svd(x, compute_uv=False)[:specific] for x in rest)]
    mean = np.mean(np.concatenate([np.atleast_1d(v) for v in values]))
    np.testing.assert_allclose(np.linalg.svd(found, compute_uv=False)[: 2 * rank], mean)


def test_wudi_is_the_minimiser() -> None:
    stack, weights = stack_of(adapters(3)).astype(np.float64), np.array([1.0, 0.5, 2.0])
    merged: Any = MERGE_METHODS.get("wudi").fn(stack, weights)

    def interference(m: Any) -> float:
        return sum(
            float(np.sum(((m - w * x) @ x.T) ** 2) / np.sum(x**2))
            for w, x in zip(weights, stack, strict=True)
        )

    best = interference(merged)
    assert best < interference((weights[:, None, None] * stack).sum(0))
    for _ in range(20):
        assert interference(merged + 1e-3 * DRAW.standard_normal(merged.shape)) > best


def test_magmax_and_emr_match_worked_examples() -> None:
    stack = np.array([[[1.0, -3.0, 0.0, 2.0]], [[-2.0, 1.0, 0.5, 2.5]]])
    magmax: Any = MERGE_METHODS.get("magmax").fn(stack, [1, 1])
    assert magmax.tolist() == [[-2.0, -3.0, 0.5, 2.5]]
    # signs of the sums -1, -2, .5, 4.5; largest magnitude that has it: 2, 3, .5, 2.5
    emr: Any = MERGE_METHODS.get("emr").fn(stack, [1, 1])
    assert emr.tolist() == [[-2.0, -3.0, 0.5, 2.5]]
    # task 0 agrees at places 1 and 3: 3 + 2.5 = 5.5, its own magnitudes sum to 6
    first: Any = MERGE_METHODS.get("emr").fn(stack, [1, 1], task=0)
    np.testing.assert_allclose(first, [[0, -3 * 6 / 5.5, 0, 2.5 * 6 / 5.5]])


def test_pcb_keeps_the_entries_with_the_highest_scores() -> None:
    draw = np.random.default_rng(1).standard_normal((2, 6, 5))
    whole: Any = MERGE_METHODS.get("pcb").fn(draw, [1, 1], density=1.0)
    low, high = draw.min(0), draw.max(0)
    assert ((whole >= low - 1e-9) & (whole <= high + 1e-9)).all()  # a weighted mean at each place
    sparse: Any = MERGE_METHODS.get("pcb").fn(draw, [1, 1], density=0.2)
    assert 6 <= np.count_nonzero(sparse) <= 12  # 6 of 30 entries of each
    # an entry that both deltas moved far in one direction outweighs the rest
    pair = np.array([[[4.0, 0.1, 0.2]], [[3.0, -0.1, 0.1]]])
    winner: Any = MERGE_METHODS.get("pcb").fn(pair, [1, 1], density=0.4)
    assert winner[0, 0] > 3 and np.count_nonzero(winner) == 1


def test_compress_merge_has_the_wanted_rank_and_keeps_one_adapter() -> None:
    given = adapters(3)
    merged = merge_adapters(given, Candidate("compress_merge", weights=(1.0,) * 3, space="delta"))
    assert merged.adapter.deltas["x.q_proj"].rank == 3
    assert merged.report["energy_lost"] < 1e-9  # nothing was truncated after the merge


def test_multislerp_has_the_mean_length_and_direction() -> None:
    stack = np.random.default_rng(2).standard_normal((3, 4, 5))
    merged: Any = MERGE_METHODS.get("multislerp").fn(stack, [1, 1, 2])
    lengths = np.linalg.norm(stack.reshape(3, -1), axis=1)
    assert np.linalg.norm(merged) == pytest.approx(float(lengths @ [0.25, 0.25, 0.5]), rel=1e-6)
    mean = sum(w * x / length for w, x, length in zip([1, 1, 2], stack, lengths, strict=True))
    np.testing.assert_allclose(merged / np.linalg.norm(merged), mean / np.linalg.norm(mean))
