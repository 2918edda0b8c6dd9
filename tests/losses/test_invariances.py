"""What may not matter to a loss: padding, order, and how a batch is cut for accumulation."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, PADDING, PROMPT, TokenOutputs

ROWS, LENGTH, VOCABULARY, WIDTH = 4, 6, 9, 5
NAMES = UNLEARNING_LOSSES.names()
ADDITIVE = [n for n in NAMES if n not in ("eul", "adaptive_rmu")]
SIZES = [2, 6, 3, 5]  # tokens of each row, of which the first is the prompt


def tables(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return logits, hidden


def batch(
    seed: int, rows: list[int], side: str, total: bool, leaf: Tensor | None = None
) -> TokenOutputs:
    """Chosen rows, packed from a table that is padded on one side."""
    logits, hidden = tables(seed)
    logits = logits if leaf is None else leaf
    labels = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % VOCABULARY
    at, row, kind = [], [], []
    for place, r in enumerate(rows):
        start = LENGTH - SIZES[r] if side == "left" else 0
        for i in range(LENGTH):
            inside = start <= i < start + SIZES[r]
            kinds = (PROMPT if i == start else ANSWER) if inside else PADDING
            at.append((r, (i - start) % LENGTH))  # the same content on either side
            row.append(place)
            kind.append(kinds)
    rs, js = (torch.tensor(x) for x in zip(*at, strict=True))
    totals = {PADDING: ROWS * LENGTH - sum(SIZES), PROMPT: ROWS, ANSWER: sum(SIZES) - ROWS}
    return TokenOutputs(
        logits[rs, js], labels[rs, js], torch.tensor(row), len(rows), torch.tensor(kind),
        hidden={7: hidden[rs, js]},
        row_total=ROWS if total else None,
        token_total=totals if total else None,
    )  # fmt: skip


def loss(name: str, rows: list[int], side: str = "left", total: bool = False) -> Tensor:
    policy, reference = batch(0, rows, side, total), batch(1, rows, side, total)
    policy.refusal, reference.refusal = batch(2, rows, side, total), batch(3, rows, side, total)
    value: Tensor = UNLEARNING_LOSSES.get(name).fn(policy, reference)
    return value


@pytest.mark.parametrize("name", NAMES)
def test_padding_side_does_not_matter(name: str) -> None:
    left, right = loss(name, [0, 1, 2, 3], "left"), loss(name, [0, 1, 2, 3], "right")
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_does_not_matter(name: str) -> None:
    torch.testing.assert_close(
        loss(name, [0, 1, 2, 3]), loss(name, [2, 0, 3, 1]), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[3, 1, 0], [2]]], ids=["ones", "uneven"])
def test_losses_of_parts_add_up_to_that_of_the_whole(name: str, parts: list[list[int]]) -> None:
    whole = loss(name, [0, 1, 2, 3])
    added = sum((loss(name, rows, total=True) for rows in parts), torch.zeros(()).double())
    torch.testing.assert_close(added, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("idk",)])
def test_masked_positions_get_no_gradient(name: str) -> None:
    policy, reference = batch(0, [0, 1, 2, 3], "left", False), batch(1, [0, 1, 2, 3], "left", False)
    policy.refusal, reference.refusal = policy, reference
    entry = UNLEARNING_LOSSES.get(name)
    reads_hidden = "hidden" in entry.needs
    assert isinstance(policy.source, Tensor) and policy.hidden is not None
    leaf = policy.hidden[7] if reads_hidden else policy.source
    leaf.requires_grad_()
    if name == "dpo":
        policy.refusal = batch(2, [0, 1, 2, 3], "left", False)
    (slope,) = torch.autograd.grad(entry.fn(policy, reference), leaf)
    mask = entry.parameters.get("mask")
    read = policy.kind != PADDING if mask and mask.default == "tokens" else policy.kind == ANSWER
    assert (slope[~read] == 0).all() and (slope[read] != 0).any(-1).all()


@pytest.mark.parametrize("name", ["kl", "undial"])
def test_a_target_made_of_the_reference_is_held_fixed(name: str) -> None:
    policy, reference = batch(0, [0, 1], "left", False), batch(1, [0, 1], "left", False)
    assert isinstance(policy.source, Tensor) and isinstance(reference.source, Tensor)
    policy.source.requires_grad_()
    reference.source.requires_grad_()
    UNLEARNING_LOSSES.get(name).fn(policy, reference).backward()
    assert policy.source.grad is not None and reference.source.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_has_a_default_and_a_type(name: str) -> None:
    for parameter in UNLEARNING_LOSSES.get(name).parameters.values():
        assert parameter.default is not inspect.Parameter.empty
        assert parameter.annotation is not inspect.Parameter.empty


REDUCED: list[tuple[str, dict[str, Any]]] = [(n, {}) for n in NAMES] + [
    ("gd", {"reduction": "rows"}),
    ("gd", {"reduction": "batch_mean"}),
    ("npo", {"reduction": "batch_mean"}),
    ("npo", {"reduction": "per_token"}),
    ("eul", {"reduction": "rows"}),
    ("kl", {"mask": "tokens"}),
    ("kl", {"mask": "all"}),
]


def weighted(name: str, rows: list[int], weights: list[float], arguments: dict[str, Any]) -> Tensor:
    said = [batch(seed, rows, "left", False) for seed in range(4)]
    for one in said:
        one.weights = torch.tensor(weights)
    policy, reference, policy.refusal, reference.refusal = said
    value: Tensor = UNLEARNING_LOSSES.get(name).fn(policy, reference, **arguments)
    return value


@pytest.mark.parametrize(("name", "arguments"), REDUCED, ids=str)
def test_a_weight_of_two_is_having_the_row_twice(name: str, arguments: dict[str, Any]) -> None:
    ours = weighted(name, [0, 1, 2], [1.0, 2.0, 0.0], arguments)
    theirs = weighted(name, [0, 1, 1], [1.0, 1.0, 1.0], arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
