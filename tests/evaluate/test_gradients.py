"""Gradient norms of documents."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergeforget.data.schema import Row
from mergeforget.evaluate.measure import measure
from mergeforget.evaluate.membership import gradient_norms


def plain_norm(model: Any, ids: list[int], start: int) -> float:
    """By keeping every gradient at once."""
    labels = torch.tensor([[-100] * start + ids[start:]])
    loss = model(input_ids=torch.tensor([ids]), labels=labels).loss
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    return float(torch.cat([g.flatten() for g in gradients]).norm())


def test_norms_equal_those_of_all_gradients_together(tiny_model: Any) -> None:
    texts = [([5, 6, 7, 8], 0), ([9, 9, 30], 2)]
    for weight in (tiny_model.model.norm.weight, tiny_model.lm_head.weight):
        assert weight.requires_grad
    found = gradient_norms(tiny_model, texts)
    assert found == pytest.approx([plain_norm(tiny_model, *text) for text in texts], rel=1e-5)


def test_gradient_norms_leave_the_model_unchanged(tiny_model: Any) -> None:
    tiny_model.requires_grad_(False)
    tiny_model.train()
    assert gradient_norms(tiny_model, [([5, 6], 0), ([5], 0), ([5, 6], 2)])[1:] == [0, 0]
    assert tiny_model.training
    assert not any(p.requires_grad or p.grad is not None for p in tiny_model.parameters())


def test_a_smaller_gradient_norm_means_a_likelier_member(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rows = [Row("a-sc1", "Ann was", "born."), Row("b-sc1", "Bob was", "here.")]
    read = measure(
        tiny_model, tiny_tokenizer, forget=[], retain=[], members=rows[:1], nonmembers=rows[1:],
        gradient_norm=True,
    )  # fmt: skip
    for row, document in zip(rows, read.losses, strict=True):
        ids = tiny_tokenizer(row.document)["input_ids"]
        norm = plain_norm(tiny_model, ids, 0)
        assert document.signals["gradient_norm"] == pytest.approx(-norm, rel=1e-5)
