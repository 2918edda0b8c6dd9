"""Rows with a common prefix are processed with that prefix once, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mergeforget.data.batches import Batch, join, pack, share_prefix
from mergeforget.data.tokens import Encoded
from mergeforget.outputs import ANSWER, PROMPT
from mergeforget.train import forward
from mergeforget.train.packing_check import can_share

BEGIN = [11, 12, 13, 14, 15, 16]


def rows(*own: list[int]) -> list[Encoded]:
    return [
        Encoded(ids=BEGIN + ids, kinds=[PROMPT] * (len(BEGIN) + 1) + [ANSWER] * (len(ids) - 1))
        for ids in own
    ]


def passed(model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Tensor, Tensor]:
    """Tokens that the model was given, NLL by row, and the gradient of its embeddings."""
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].numel())
    )
    model.zero_grad()
    nll = forward.predict(model, batch).nll()
    nll.sum().backward()
    hook.remove()
    return seen[-1], nll.detach(), model.get_input_embeddings().weight.grad.clone()


@pytest.mark.parametrize("kinds", [(ANSWER,), (PROMPT, ANSWER)])
def test_a_common_prefix_is_processed_once(
    kinds: tuple[int, ...], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pack(rows([20, 21, 22], [20, 23, 24, 25, 26]), kinds)
    batch = join([one, pack(rows([27, 28], [29, 30, 31]), kinds)])
    tokens, nll, slope = passed(tiny_model, batch, monkeypatch)
    monkeypatch.setattr(forward, "can_share", lambda model: False)
    before, apart, own = passed(tiny_model, batch, monkeypatch)
    assert (before, tokens) == (4 * len(BEGIN) + 13, len(BEGIN) + 13)
    torch.testing.assert_close(nll, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope, own, atol=1e-5, rtol=1e-4)


def test_rows_of_two_forms_share_one_prefix_per_form(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [Encoded(ids=[40, 41, 42, 43, 44, *own], kinds=[PROMPT] * 5 + [ANSWER] * len(own))
           for own in ([50, 51], [52, 53, 54])]  # fmt: skip
    lone = [Encoded(ids=[60, 61, 62], kinds=[PROMPT, ANSWER, ANSWER])]
    chat = rows([20, 21, 22], [20, 23, 24])
    batch = pack([chat[0], raw[0], lone[0], chat[1], raw[1]])
    tokens, nll, slope = passed(tiny_model, batch, monkeypatch)
    monkeypatch.setattr(forward, "can_share", lambda model: False)
    before, apart, own = passed(tiny_model, batch, monkeypatch)
    assert (before, tokens) == (36, 36 - (len(BEGIN) + 1) - 5)
    torch.testing.assert_close(nll, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope, own, atol=1e-5, rtol=1e-4)


def test_rows_without_a_common_prefix_are_unchanged() -> None:
    short = [Encoded(ids=ids, kinds=[ANSWER] * 4) for ids in ([1, 2, 3, 4], [5, 2, 3, 4])]
    assert share_prefix(pack(short)) is None
    equal = [Encoded(ids=[1, 2, 3, 4], kinds=[ANSWER] * 4)] * 2
    once = share_prefix(pack(equal))
    assert once is not None and once.input_ids.tolist() == [[1, 2, 3, 4, 4]]
    assert once.keep.tolist() == [0, 1, 2, 0, 1, 2]


def test_windows_and_dropout_disable_prefix_sharing(
    make_model: Callable[..., Any], tiny_model: Any
) -> None:
    assert can_share(tiny_model)
    windowed = make_model()
    windowed.config.sliding_window = 4
    assert not can_share(windowed)
    batch = pack(rows([20, 21, 22], [20, 23, 24]))
    tiny_model.train()
    assert forward._shares_prefixes(tiny_model, batch)
    tiny_model.dropped = torch.nn.Dropout(0.1)
    try:
        assert not forward._shares_prefixes(tiny_model, batch)
    finally:
        del tiny_model.dropped
        tiny_model.eval()
