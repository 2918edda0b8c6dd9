"""Several adapters on a loaded model at once: each row is computed as with its own alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.errors import InputError
from mergeforget.merge.apply import applied
from mergeforget.merge.multi_adapter import UnfitError, side_by_side

RANKS = (2, 5, 1)
SIZES = {"0": (6, 4), "1": (5, 6)}  # (out, in)


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))


def transposed() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(Conv1D(6, 4), Conv1D(5, 6))


def adapter(seed: int, rank: int, modules: tuple[str, ...] = ("0", "1"), **config: Any) -> Adapter:
    draw = np.random.default_rng(seed)
    deltas = {}
    for name in modules:
        rows, columns = SIZES[name]
        a = draw.standard_normal((rank, columns)).astype(np.float32)
        b = draw.standard_normal((rows, rank)).astype(np.float32)
        deltas[name] = LowRankDelta(a, b, 0.5 + seed)
    return Adapter(f"adapter {seed}", deltas, config)


ADAPTERS = [adapter(seed, rank) for seed, rank in enumerate(RANKS)]


def alone(net: Any, change: Adapter, x: torch.Tensor) -> torch.Tensor:
    with applied(net, change), torch.no_grad():
        return torch.as_tensor(net(x))


def check_rows(net: Any, adapters: list[Adapter], owners: list[int], x: torch.Tensor) -> None:
    """Each row has the output of a model with its own adapter alone."""
    with torch.no_grad(), side_by_side(net, adapters) as beside:
        beside.rows(owners)
        found = net(x)
    for row, owner in enumerate(owners):
        wanted = alone(net, adapters[owner], x[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], wanted, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 3))
def test_each_row_uses_its_adapter(owners: list[int], tokens: int) -> None:
    """Adapters may have any ranks and order, and equal or different numbers of rows."""
    check_rows(model(), ADAPTERS, owners, torch.randn(len(owners), tokens, 4))


def test_rows_that_leave_keep_their_adapter() -> None:
    """As decoding does it: two of each, then some, then those of one alone, then all again."""
    net, x = model(), torch.randn(6, 1, 4)
    every = [alone(net, change, x) for change in ADAPTERS]
    owners = [0, 0, 1, 1, 2, 2]
    with torch.no_grad(), side_by_side(net, ADAPTERS) as beside:
        for rows in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5], [2, 3], [3], [0, 1, 2, 3, 4, 5]):
            beside.rows([owners[row] for row in rows])
            found = net(x[rows])
            for i, row in enumerate(rows):
                torch.testing.assert_close(found[i], every[owners[row]][row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [1, 0, 1]])
def test_a_base_that_stores_its_weights_transposed(owners: list[int]) -> None:
    some = [adapter(seed, 3, fan_in_fan_out=True) for seed in range(2)]
    check_rows(transposed(), some, owners, torch.randn(len(owners), 2, 4))


def test_modules_without_a_delta_are_bit_identical() -> None:
    net, x = model(), torch.randn(4, 1, 4)
    some = [adapter(1, 2, ("1",)), Adapter("base", {}, {})]
    with torch.no_grad():
        before = net(x)
        with side_by_side(net, some) as beside:
            for owners in ([0, 0, 1, 1], [0, 1, 1, 1]):
                beside.rows(owners)
                found = net(x)
                assert torch.equal(found[2:], before[2:])
                assert not torch.allclose(found[0], before[0])


@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [0, 1, 1, 1]])
def test_nan_in_one_adapter_does_not_affect_other_rows(owners: list[int]) -> None:
    net, x = model(), torch.randn(4, 1, 4)
    bad = adapter(0, 2)
    bad.deltas["0"].b[:] = np.nan
    with torch.no_grad(), side_by_side(net, [bad, ADAPTERS[1]]) as beside:
        beside.rows(owners)
        found = net(x)
    assert found.isnan().all((1, 2)).tolist() == [owner == 0 for owner in owners]


def test_the_model_is_restored_bit_for_bit_after_an_error() -> None:
    net, x = model(), torch.randn(2, 1, 4)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        before = net(x)
        with pytest.raises(ZeroDivisionError), side_by_side(net, ADAPTERS) as beside:
            beside.rows([0, 1])
            net(x)
            raise ZeroDivisionError
        assert torch.equal(net(x), before)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [0, 1, 2, 2]])
def test_half_precision_dtypes_are_preserved(owners: list[int]) -> None:
    net, x = model().bfloat16(), torch.randn(4, 1, 4).bfloat16()
    with torch.no_grad(), side_by_side(net, ADAPTERS) as beside:
        beside.rows(owners)
        found = net(x)
    assert found.dtype == torch.bfloat16
    net.float()
    for row, owner in enumerate(owners):
        wanted = alone(net, ADAPTERS[owner], x[row : row + 1].float())
        torch.testing.assert_close(found[row : row + 1].float(), wanted, rtol=0.1, atol=0.3)


def test_an_adapter_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="no module '7'"):
        with side_by_side(model(), [Adapter("x", {"7": ADAPTERS[0].deltas["0"]}, {})]):
            pass
    with pytest.raises(InputError, match="another model"):
        with side_by_side(model(), [ADAPTERS[0], Adapter("x", {"1": ADAPTERS[0].deltas["0"]}, {})]):
            pass


class Reader(nn.Module):
    """Reads the weight of a layer and never calls the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.inner.weight)


class Flattener(nn.Module):
    """Gives a layer the tokens of all rows in one line, as routers of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.inner(x.flatten(0, 1)))


@pytest.mark.parametrize(
    ("net", "what"),
    [(Reader(), "does not call inner"), (Flattener(), "cannot be separated")],
    ids=["reader", "flattener"],
)
def test_a_model_that_does_not_keep_rows_separate_is_refused(net: nn.Module, what: str) -> None:
    change = Adapter("x", {"inner": ADAPTERS[0].deltas["0"]}, {})
    with torch.no_grad(), side_by_side(net, [change, change]) as beside:
        beside.rows([0, 1])
        with pytest.raises(UnfitError, match=what):
            net(torch.randn(2, 3, 4))
