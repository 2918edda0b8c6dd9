"""Rounding to few bits: against the formula in float64, and by its bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.attack.rounding import round_to_nearest, rounded
from mergeforget.errors import UsageError


def reference(weight: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """The formula, group by group, in float64."""
    top = 2 ** (bits - 1) - 1
    found = np.zeros_like(weight)
    for i, row in enumerate(weight):
        size = len(row) if group is None else group
        for start in range(0, len(row), size):
            part = row[start : start + size]
            scale = np.abs(part).max() / top
            if scale:
                found[i, start : start + size] = scale * np.rint(part / scale)
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 64, 7])
def test_weights_are_those_of_the_formula(bits: int, group: int | None) -> None:
    weight = torch.randn(5, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[2] = 0  # a row of zeros has no scale
    found = round_to_nearest(weight, bits, group).numpy()
    np.testing.assert_allclose(found, reference(weight.numpy(), bits, group), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 64)])
def test_no_weight_moves_by_more_than_half_a_scale(bits: int, group: int | None) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    found = round_to_nearest(weight, bits, group)
    parts = weight.double().view(16, -1, group or 128)
    scale = parts.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (found.double().view_as(parts) - parts).abs() / scale
    assert error.max() <= 0.5 + 1e-5
    assert error.mean() == pytest.approx(0.25, abs=0.03)  # uniform between two marks
    assert len(found[0, : group or 128].unique()) <= 2**bits - 1


def test_rounding_twice_changes_nothing_more() -> None:
    weight = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    once = round_to_nearest(weight, 4, 64)
    torch.testing.assert_close(round_to_nearest(once, 4, 64), once, rtol=1e-14, atol=0)


def test_half_types_come_back_as_they_were_given() -> None:
    weight = torch.randn(4, 70).bfloat16()
    found = round_to_nearest(weight, 8)
    assert found.dtype == torch.bfloat16 and found.shape == weight.shape


def test_a_model_gets_its_weights_back(tiny_model: Any) -> None:
    before = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), rounded(tiny_model, 4, 64) as count:
        assert count == 2 * 7  # attention and MLP of two layers, not the output layer
        changed = [n for n, p in tiny_model.named_parameters() if not torch.equal(p, before[n])]
        assert len(changed) == count and not any("embed" in n for n in changed)
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[n]) for n, p in tiny_model.named_parameters())


def test_one_bit_is_refused() -> None:
    with pytest.raises(UsageError, match="the least is 2"):
        round_to_nearest(torch.ones(2, 2), 1)
