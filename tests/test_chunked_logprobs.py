"""Chunks over the vocabulary: the same numbers and gradients as the plain way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mergeforget import chunked_logprobs
from mergeforget.chunked_logprobs import Projection, divergence, label_logps, values_of_logits
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, TokenOutputs


@pytest.fixture(params=[2, 512])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_logprobs, "CHUNK", request.param)


def parts(trained: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 3, generator=generator, dtype=torch.float64, requires_grad=trained)
    return hidden, weight, torch.tensor([0, 10, 3, 3, 7])


def target(logits: Tensor, reference: Tensor | None, labels: Tensor) -> Tensor:
    assert reference is not None
    return torch.log_softmax(reference, -1)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("trained", [False, True], ids=["frozen-head", "trained-head"])
def test_chunked_results_equal_unchunked_ones(trained: bool) -> None:
    hidden, weight, labels = parts(trained)
    other = Projection(hidden.detach() + 0.5, weight.detach())
    plain = hidden @ weight.T
    scale = torch.linspace(-1, 2, 5, dtype=torch.float64)  # a different weight for every token
    pairs = [
        (label_logps(Projection(hidden, weight), labels), label_logps(plain, labels)),
        (
            divergence(Projection(hidden, weight), other, labels, target)[0],
            divergence(plain, other.logits(), labels, target)[0],
        ),
    ]
    leaves = [hidden, weight] if trained else [hidden]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
        mine = torch.autograd.grad((scale * ours).sum(), leaves, retain_graph=True)
        other_way = torch.autograd.grad((scale * theirs).sum(), leaves, retain_graph=True)
        for a, b in zip(mine, other_way, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("chunk")
def test_gradients_equal_finite_differences() -> None:
    hidden, weight, labels = parts(False)
    other = Projection(torch.ones_like(hidden), weight)
    assert torch.autograd.gradcheck(lambda h: label_logps(Projection(h, weight), labels), hidden)
    assert torch.autograd.gradcheck(
        lambda h: divergence(Projection(h, weight), other, labels, target)[0], hidden
    )


def test_zero_tokens_are_supported() -> None:
    hidden, weight, labels = parts(False)
    none = Projection(hidden[:0], weight)
    assert label_logps(none, labels[:0]).shape == (0,)
    assert divergence(none, none, labels[:0], target)[0].shape == (0,)


def test_saved_tensors_do_not_grow_with_the_vocabulary() -> None:
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    hidden = torch.randn(600, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        label_logps(Projection(hidden, torch.randn(1000, 4)), torch.zeros(600, dtype=torch.long))
    assert kept == [600 * 4]


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("trained", [False, True], ids=["frozen-head", "trained-head"])
@pytest.mark.parametrize("name", ["pdu", "jensun_retain"])
def test_losses_of_whole_distributions_are_the_same_in_chunks(name: str, trained: bool) -> None:
    hidden, weight, labels = parts(trained)
    row, kind = torch.tensor([0, 0, 0, 1, 1]), torch.full((5,), ANSWER)
    other = Projection(hidden.detach() + 0.5, weight.detach())

    def outputs(source: Tensor | Projection) -> TokenOutputs:
        return TokenOutputs(source, labels, row, 2, kind)

    loss = UNLEARNING_LOSSES.get(name).fn
    ours = loss(outputs(Projection(hidden, weight)), outputs(other))
    theirs = loss(outputs(hidden @ weight.T), outputs(other.logits()))
    torch.testing.assert_close(ours, theirs)
    leaves = [hidden, weight] if trained else [hidden]
    mine, other_way = (torch.autograd.grad(value, leaves) for value in (ours, theirs))
    for a, b in zip(mine, other_way, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["pdu", "jensun_retain"])
def test_losses_of_whole_distributions_keep_no_table_of_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_logprobs, "CHUNK", 50)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    hidden, head = torch.randn(600, 4, requires_grad=True), torch.randn(1000, 4)
    row, kind = torch.zeros(600, dtype=torch.long), torch.full((600,), ANSWER)
    policy, reference = (TokenOutputs(Projection(h, head), row, row, 1, kind)
                         for h in (hidden, hidden.detach() + 1))  # fmt: skip
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        UNLEARNING_LOSSES.get(name).fn(policy, reference)
    assert max(kept) < 600 * 1000 / 10 and sum(kept) < 600 * 1000 / 4


def test_values_of_zero_positions_are_supported() -> None:
    hidden, weight, _ = parts(False)
    none = Projection(hidden[:0], weight)
    assert values_of_logits(none, None, lambda z, _: z.sum(-1)).shape == (0,)
