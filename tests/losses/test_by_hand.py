"""Losses of one token against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, TokenOutputs


def one_token(p: float) -> TokenOutputs:
    """One answer of one token that has probability ``p`` among two."""
    logits = torch.tensor([[math.log(p / (1 - p)), 0.0]], dtype=torch.float64, requires_grad=True)
    first = torch.tensor([0])
    return TokenOutputs(logits, first, first, 1, torch.tensor([ANSWER]))


BY_HAND = [
    # p = 1/4: l = ln 4 = 1.386294
    ("ga", {}, -1.386294),
    ("eul", {}, 0.721348),  # 1 / ln 4
    ("eul", {"power": 2}, 0.520342),  # its square
    ("simnpo", {"beta": 1.0}, 0.446287),  # -2 ln sigmoid(ln 4) = -2 ln(4/5)
    ("wga", {}, -0.346574),  # p l = ln 4 / 4, negative
    ("satimp", {"beta1": 1.0}, -0.259930),  # p (1 - p) l = 3/16 ln 4
    ("pdu", {}, 0.301737),  # logits (-ln 3, 0): max 0, mean -ln(3) / 2, squared
    ("level", {"tau": 2.0}, 0.613706),  # 2 - ln 4, above 1 nat: weight 1
    ("level", {"tau": 2.0, "known_below": 1.5}, 6.137056),  # ten times that
    ("ceu", {}, 0.287682),  # the other token has all of the target: -ln(3/4)
    ("atwu", {"beta": 1.0}, -0.346574),  # g l = ln 2, times exp(-ln 2) = 1/2
]


@pytest.mark.parametrize(("name", "arguments", "expected"), BY_HAND, ids=lambda v: str(v)[:20])
def test_losses_match_a_hand_calculation(
    name: str, arguments: dict[str, Any], expected: float
) -> None:
    value = UNLEARNING_LOSSES.get(name).fn(one_token(0.25), None, **arguments)
    assert float(value.detach()) == pytest.approx(expected, abs=1e-6)


def test_undial_matches_a_hand_calculation() -> None:
    # reference p = 1/2 and beta = ln 3: target (1/4, 3/4); policy p = 1/2: -ln(1/2) = 0.693147
    value = UNLEARNING_LOSSES.get("undial").fn(one_token(0.5), one_token(0.5), beta=math.log(3))
    assert float(value.detach()) == pytest.approx(0.693147, abs=1e-6)


def test_eul_is_linear_below_its_floor_and_records_the_share() -> None:
    policy = one_token(0.999)  # l = 0.0010005, floor 0.01: 100 (1 - (l - 0.01) / 0.01) = 189.995
    value = UNLEARNING_LOSSES.get("eul").fn(policy, floor=0.01)
    assert float(value.detach()) == pytest.approx(189.995, abs=1e-3)
    assert policy.notes == {"clamped": 1.0}
    assert isinstance(policy.source, Tensor)
    (slope,) = torch.autograd.grad(value, policy.source)
    # d value / d l = -1 / 0.01^2 = -1e4, d l / d logit = -(1 - p) = -0.001: 10
    assert float(slope[0, 0]) == pytest.approx(10, rel=1e-3)
    free = one_token(0.25)
    UNLEARNING_LOSSES.get("eul").fn(free)
    assert free.notes == {"clamped": 0.0}
