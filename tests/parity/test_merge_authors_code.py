"""Methods against an independent version of what their authors published, written in torch.

The references follow the formulas of the public repositories (PCB-Merging, RobustMerge,
Compress-then-Merge) step by step, with other data structures than the methods here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.adapter import LowRankDelta
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.methods import compress_merge, robust_merge
from mergeforget.merge.methods.compress_merge import shared_bases
from mergeforget.merge.methods.pcb import pcb


def scaled(x: torch.Tensor) -> torch.Tensor:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return (x - low) / (high - low)


def bounded(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clipped from below and above, by the given fractions of the entries."""
    ordered, d = x.sort(1).values, x.shape[1]
    return torch.clamp(x, ordered[:, [int(d * low)]], ordered[:, [int(d * (1 - high) - 1)]])


def published_pcb(flat: torch.Tensor, kept: float) -> torch.Tensor:
    """github.com/duguodong7/pcb-merging, PCB_merge."""
    magnitude = bounded(flat.abs(), 1e-4, 1e-4)
    alone = torch.exp(len(flat) * scaled(magnitude) ** 2)
    score = alone * torch.tanh(flat * flat.sum(0))
    scale = scaled(bounded(score, 1 - kept, 0))
    return (flat.sign() * magnitude * scale).sum(0) / scale.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("kept", [0.05, 0.1, 0.5])
def test_pcb_equals_the_published_code(kept: float) -> None:
    stack = torch.randn(3, 40, 25, generator=torch.Generator().manual_seed(0))
    wanted = published_pcb(stack.reshape(3, -1), kept).reshape(40, 25)
    found: Any = pcb(stack.numpy(), [1, 1, 1], density=kept, scores="code")
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    paper: Any = pcb(stack.numpy(), [1, 1, 1], density=kept)
    assert not np.allclose(paper, wanted.numpy(), atol=1e-3)  # the two differ
    with pytest.raises(UsageError, match="paper or code"):
        pcb(stack.numpy(), [1, 1, 1], density=kept, scores="other")  # type: ignore[arg-type]


def published_robust(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """github.com/AuroraZengfh/RobustMerge, 20 % of the entries and of the directions."""

    def masks(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(len(x), -1).abs()
        cut = flat.kthvalue(int(flat.shape[1] * (1 - 0.2)), dim=1, keepdim=True).values
        return (flat >= cut).reshape(x.shape)

    kept = masks(a) * a
    s = a.abs().sum(-1) / kept.abs().sum(-1)
    scale = torch.clamp(s, s.sort(1).values[:, [int(s.shape[1] * (1 - 0.2))]])
    merged_a = (2 * kept).sum(0)
    merged_b = (2 * scale[:, None] * masks(b) * b).sum(0) / scale[:, None].sum(0)
    return merged_b @ merged_a


def test_robust_merge_equals_the_published_code() -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 4, 25, generator=draw), torch.randn(2, 25, 4, generator=draw)
    deltas = [LowRankDelta(x.numpy(), y.numpy(), 1.0) for x, y in zip(a, b, strict=True)]
    # theirs keeps 100 - int(.8 * 100) + 1 = 21 of 100 entries
    found_a, found_b = robust_merge.factors(deltas, [1.0, 1.0], density=0.21, scale=4.0)
    np.testing.assert_allclose(found_b @ found_a, published_robust(a, b).numpy(), atol=1e-5)
    other = LowRankDelta(deltas[1].a[:2], deltas[1].b[:, :2], 1.0)
    with pytest.raises(InputError, match=r"ranks must be equal, not \[2, 4\]"):
        robust_merge.factors([deltas[0], other], [1.0, 1.0])


def test_robust_merge_survives_directions_that_are_pruned_away() -> None:
    a = np.array([[10.0, 9, 8], [0.1, 0.1, 0.1]], np.float32)
    deltas = [LowRankDelta(a, np.ones((4, 2), np.float32), 1.0)] * 2
    found_a, found_b = robust_merge.factors(deltas, np.array([1.0, -1.0]), density=0.4)
    assert np.isfinite(found_a).all() and np.isfinite(found_b).all()
    assert not found_a.any()  # equal adapters of opposite weights cancel
    zero = [LowRankDelta(a * 0, np.zeros((4, 2), np.float32), 1.0)] * 2
    assert not (np.matmul(*robust_merge.factors(zero, np.ones(2))[::-1])).any()


def test_the_shared_bases_are_those_of_a_tucker_decomposition() -> None:
    """No other pair of bases keeps more: the gradient within the bases' manifold vanishes."""
    stack = np.random.default_rng(0).standard_normal((3, 12, 9))
    stack[:2] *= 3
    left, right = shared_bases(stack, 4)

    def kept(u: Any, v: Any) -> float:
        return float(sum(np.sum((u.T @ x @ v) ** 2) for x in stack))

    best, draw = kept(left, right), np.random.default_rng(1)
    for _ in range(20):
        u = np.linalg.qr(left + 0.05 * draw.standard_normal(left.shape))[0]
        v = np.linalg.qr(right + 0.05 * draw.standard_normal(right.shape))[0]
        assert kept(u, v) < best


def test_equal_norms_keep_a_small_delta_in_the_bases() -> None:
    large, small = np.zeros((2, 6, 6))
    large[0, 0], large[1, 1], small[2, 2] = 10, 9, 1
    stack, merge = np.stack([large, small]), compress_merge.compress_merge
    balanced: Any = merge(stack, [1, 1], density=1.0, size=1, beta=0.0)
    as_they_are: Any = merge(stack, [1, 1], density=1.0, size=1, beta=1.0)
    # of equal norms: .74 and .67 for the large delta, 1 for the small one
    assert balanced[2, 2] == pytest.approx(1) and abs(balanced[0, 0]) < 1e-6
    assert as_they_are[0, 0] == pytest.approx(10) and abs(as_they_are[2, 2]) < 1e-6
