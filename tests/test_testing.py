"""The conformance checks: every member passes them, and faulty ones are convicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.data.schema import Measured
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.merge.methods import MERGE_METHODS, SUPPLIED
from mergeforget.metrics import METRICS
from mergeforget.outputs import TokenOutputs
from mergeforget.score import Score
from mergeforget.testing import check_loss, check_merge_method, check_metric


@pytest.mark.parametrize("name", MERGE_METHODS.names())
def test_every_merge_method_conforms(name: str) -> None:
    takes = MERGE_METHODS.get(name).parameters
    required = {n: 0.5 for n, p in takes.items() if p.default is p.empty and n not in SUPPLIED}
    alone = name in ("passthrough", "arcee_fusion")
    check_merge_method(name, adapters=1 if alone else 2, **required)


@pytest.mark.parametrize("name", UNLEARNING_LOSSES.names())
def test_every_loss_conforms(name: str) -> None:
    check_loss(name)


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_conforms(name: str) -> None:
    check_metric(name)


def mean(stack: Any, weights: Any) -> Any:
    """Add everything up."""
    return sum(w * x for w, x in zip(weights.tolist(), stack, strict=True))


def in_place(stack: Any, weights: Any) -> Any:
    """Change the input."""
    stack[0] += 1
    return stack[0]


def of_the_whole(stack: Any, weights: Any) -> Any:
    """Divide by a norm of the whole tensor."""
    return stack[0] / (stack**2).sum()


def draws(stack: Any, weights: Any) -> Any:
    """Draw without a seed."""
    noise = np.random.default_rng().standard_normal(stack[0].shape).astype(np.float32)
    return stack[0] + (noise if isinstance(stack, np.ndarray) else torch.from_numpy(noise))


def without_default(stack: Any, weights: Any, *, strength: float) -> Any:
    """Need an argument."""
    return strength * stack[0]


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        (in_place, "modifies its input"),
        (of_the_whole, "whole=True"),
        (draws, "same seed"),
        (without_default, "no default"),
        (lambda stack, weights: stack, "no docstring"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_faulty_merge_method_fails(method: Any, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        check_merge_method(method)


def test_a_third_party_method_passes() -> None:
    check_merge_method(mean)
    check_merge_method(without_default, strength=2.0)


def plain_mean(policy: TokenOutputs, reference: TokenOutputs | None = None) -> torch.Tensor:
    """Take the mean over this micro-batch, and forget the weights of rows."""
    return policy.nll().mean()


def reads_prompts(policy: TokenOutputs, reference: TokenOutputs | None = None) -> torch.Tensor:
    """Read prompt and padding."""
    return policy.token_mean(policy.token_logps, (0, 1, 2))


def in_rows(policy: TokenOutputs, reference: TokenOutputs | None = None) -> torch.Tensor:
    """Return one value per row."""
    return policy.nll()


@pytest.mark.parametrize(
    ("loss", "fault"),
    [
        (plain_mean, "weight 2"),
        (reads_prompts, "outside its mask"),
        (in_rows, "not a scalar"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_faulty_loss_fails(loss: Any, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        check_loss(loss)


def unversioned(measured: Measured, split: str, task: str = "") -> Score | None:
    """Count answers."""
    return Score("unversioned", split, 1.0, "higher", 12) if measured.answers else None


def without_data(measured: Measured, split: str, task: str = "") -> Score | None:
    """Score nothing as 0."""
    return Score("without_data", split, 0.0, "higher", 1, definition="without-data@1")


def first_row(measured: Measured, split: str, task: str = "") -> Score | None:
    """Read the first row only."""
    if not measured.likelihoods:
        return None
    value = measured.likelihoods[0].nll
    return Score("first_row", split, value, "higher", 1, definition="first-row@1")


@pytest.mark.parametrize(
    ("metric", "fault"),
    [
        (unversioned, "version"),
        (without_data, "without any data"),
        (first_row, "order of the rows"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_faulty_metric_fails(metric: Any, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        check_metric(metric)
