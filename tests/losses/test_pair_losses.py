"""NPO, GDR and KLR are compared with independent float64 versions and worked examples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mergeforget.losses.gd import gd
from mergeforget.losses.kl import kl
from mergeforget.losses.npo import npo
from mergeforget.outputs import ANSWER, PROMPT, TokenOutputs

ROW = torch.tensor([0, 0, 0, 1, 1, 2])


def outputs(seed: int, logits: Tensor | None = None, kind: Tensor | None = None) -> TokenOutputs:
    generator = torch.Generator().manual_seed(seed)
    if logits is None:
        logits = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    kind = torch.full((6,), ANSWER) if kind is None else kind
    return TokenOutputs(logits, labels, ROW, 3, kind)


def sums(o: TokenOutputs) -> list[Tensor]:
    logp = o.logits - o.logits.exp().sum(-1, keepdim=True).log()
    return [sum(-logp[i, o.labels[i]] for i in range(6) if ROW[i] == r) for r in range(3)]  # type: ignore[misc]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_equals_its_equation(beta: float) -> None:
    policy, reference = outputs(0), outputs(1)
    ours = npo(policy, reference, beta=beta)
    pairs = list(zip(sums(policy), sums(reference), strict=True))
    terms = [(1 + (-beta * (s - r)).exp()).log() for s, r in pairs]
    theirs = 2 / beta * torch.stack(terms).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    (mine,) = torch.autograd.grad(ours, policy.logits, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, policy.logits)
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "batch_mean", "per_token"])
def test_npo_begins_at_two_ln_two_over_beta(reduction: str) -> None:
    policy = outputs(0)
    value = npo(policy, outputs(0), beta=0.1, reduction=reduction)  # type: ignore[arg-type]
    assert float(value.detach()) == pytest.approx(2 * math.log(2) / 0.1, rel=1e-9)


def test_npo_matches_a_hand_calculation() -> None:
    # one token per sequence; policy gives p = 1/2, reference p = 1: S = ln 2, S_ref = 0, beta = 1
    # -2 log sigmoid(ln 2) = -2 ln(2/3) = 0.810930
    policy = TokenOutputs(
        torch.zeros(1, 2).double(), torch.tensor([0]), torch.tensor([0]), 1, torch.tensor([ANSWER])
    )
    sure = TokenOutputs(
        torch.tensor([[60.0, 0.0]]).double(),
        torch.tensor([0]),
        torch.tensor([0]),
        1,
        torch.tensor([ANSWER]),
    )
    assert float(npo(policy, sure, beta=1.0)) == pytest.approx(0.810930, abs=1e-6)


def test_npo_approaches_gradient_ascent() -> None:
    policy, reference = outputs(0), outputs(1)
    (soft,) = torch.autograd.grad(npo(policy, reference, beta=1e-7), policy.logits)
    (ascent,) = torch.autograd.grad(-torch.stack(sums(policy)).mean(), policy.logits)
    torch.testing.assert_close(soft, ascent, rtol=1e-5, atol=1e-8)


def test_gd_is_the_mean_over_tokens() -> None:
    policy = outputs(0)
    torch.testing.assert_close(gd(policy), sum(sums(policy)) / 6)


def test_kl_equals_its_equation_and_is_zero_at_the_reference() -> None:
    policy, reference = outputs(0), outputs(1)
    p, q = reference.logits.softmax(-1), policy.logits.softmax(-1)
    theirs = (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(kl(policy, reference), theirs, rtol=1e-6, atol=1e-7)
    assert float(kl(outputs(0), outputs(0)).detach()) == 0


def test_kl_with_mask_answer_ignores_the_prompt() -> None:
    kind = torch.tensor([PROMPT, ANSWER, ANSWER, PROMPT, ANSWER, ANSWER])
    policy, reference = outputs(0, kind=kind), outputs(1, kind=kind)
    (gradient,) = torch.autograd.grad(kl(policy, reference, mask="answer"), policy.logits)
    assert (gradient[kind == PROMPT] == 0).all() and (gradient[kind == ANSWER] != 0).any()
    (gradient,) = torch.autograd.grad(
        kl(outputs(0, policy.logits, kind), reference, mask="tokens"), policy.logits
    )
    assert (gradient != 0).any(-1).all()
