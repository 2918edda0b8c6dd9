"""The reductions of the losses conform as their defaults do, and targets are held fixed."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import TokenOutputs
from mergeforget.testing import check_loss, outputs_for_checks

REDUCED: list[tuple[str, dict[str, Any]]] = [
    ("gd", {"reduction": "rows"}),
    ("gd", {"reduction": "batch_mean"}),
    ("npo", {"reduction": "batch_mean"}),
    ("npo", {"reduction": "per_token"}),
    ("eul", {"reduction": "rows"}),
    ("kl", {"mask": "tokens"}),
    ("kl", {"mask": "all"}),
]


@pytest.mark.parametrize(("name", "arguments"), REDUCED, ids=str)
def test_every_reduction_conforms(name: str, arguments: dict[str, Any]) -> None:
    own_batch = arguments.get("reduction") == "batch_mean"  # of the micro-batch, as published
    check_loss(name, **arguments, additive=False if own_batch else None)


@pytest.mark.parametrize("name", ["kl", "undial"])
def test_targets_from_the_reference_have_no_gradient(name: str) -> None:
    policy, reference = (outputs_for_checks(seed, [0, 1]) for seed in (0, 1))
    for one in (policy, reference):
        assert isinstance(one, TokenOutputs) and isinstance(one.source, Tensor)
        one.source.requires_grad_()
    UNLEARNING_LOSSES.get(name).fn(policy, reference).backward()
    assert isinstance(policy.source, Tensor) and isinstance(reference.source, Tensor)
    assert policy.source.grad is not None and reference.source.grad is None
