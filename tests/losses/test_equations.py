"""Every objective against its equation, written out in float64, value and gradient.

The equations here share no code with the losses: they loop over sequences and tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mergeforget.chunked_logprobs import Projection
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, PADDING, PROMPT, TokenOutputs

WIDTH, VOCABULARY = 4, 7
ROW = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
KIND = torch.tensor([PROMPT, ANSWER, ANSWER, PADDING, PROMPT, ANSWER, ANSWER, ANSWER, ANSWER])
ANSWERS = [[1, 2], [5, 6], [7, 8]]  # positions by sequence
LABELS = torch.tensor([0, 3, 1, 6, 2, 2, 4, 5, 0])
HEAD = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(9)).double()


class Said:
    """Outputs of one model: hidden states, logits, and l = -log p of each label."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(len(LABELS), WIDTH, generator=generator, dtype=torch.float64)
        self.hidden = (1.5 * hidden).requires_grad_()
        self.logits = self.hidden @ HEAD.T
        z = self.logits.exp().sum(-1, keepdim=True)
        self.p = self.logits.exp() / z
        self.l = [-self.p[i, y].log() for i, y in enumerate(LABELS.tolist())]

    def outputs(self, *, plain: bool) -> TokenOutputs:
        source = self.hidden @ HEAD.T if plain else Projection(self.hidden, HEAD)
        return TokenOutputs(source, LABELS, ROW, 3, KIND, hidden={7: self.hidden})

    def sums(self) -> list[Tensor]:
        return [sum((self.l[i] for i in at), torch.zeros(())) for at in ANSWERS]

    def means(self) -> list[Tensor]:
        return [s / len(at) for s, at in zip(self.sums(), ANSWERS, strict=True)]

    def row_sums(self, at: list[int]) -> list[Tensor]:
        return [torch.stack([self.l[i] for i in at if ROW[i] == r]).sum() for r in range(3)]

    def row_means(self, at: list[int]) -> list[Tensor]:
        return [torch.stack([self.l[i] for i in at if ROW[i] == r]).mean() for r in range(3)]

    def tokens(self) -> list[Tensor]:
        return [self.l[i] for at in ANSWERS for i in at]


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def softplus(x: Tensor) -> Tensor:  # -log sigmoid(-x)
    return (1 + x.exp()).log()


def unit(size: int) -> Tensor:
    u = torch.rand(size, generator=torch.Generator().manual_seed(0))
    unit_vector: Tensor = u / u.norm()
    return unit_vector.double()


READ = [i for i, k in enumerate(KIND.tolist()) if k != PADDING]  # mask "tokens"
FLAT = [i for at in ANSWERS for i in at]


def undial(a: Said, b: Said, at: list[int] = FLAT) -> Tensor:
    total = []
    for i in at:
        z = b.logits[i].detach().clone()
        z[LABELS[i]] -= 10
        t = z.exp() / z.exp().sum()
        total.append(-(t * a.p[i].log()).sum())
    return mean(total)


def ceu(a: Said, b: Said) -> Tensor:
    total = []
    for i in FLAT:
        z = a.logits[i].detach().exp()
        z[LABELS[i]] = 0
        total.append(-((z / z.sum()) * a.p[i].log()).sum())
    return mean(total)


def adaptive(a: Said, b: Said) -> Tensor:
    c = 5 * mean([b.hidden[i].norm() for i in READ]).detach()
    return mean([((a.hidden[i] - c * unit(WIDTH)) ** 2).sum() for i in READ])


def ceu_after_the_first(a: Said, b: Said) -> Tensor:
    total = []
    for i in [i for at in ANSWERS for i in at[1:]]:
        z = a.logits[i].detach().exp()
        z[LABELS[i]] = 0
        total.append(-((z / z.sum()) * a.p[i].log()).sum())
    return mean(total)


def margins(a: Said, at: list[int]) -> Tensor:
    return mean([(a.logits[i].max() - a.logits[i].mean()) ** 2 for i in at])


def jsd(p: Tensor, q: Tensor) -> Tensor:
    m = (p + q) / 2
    return ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2


def kl(a: Said, b: Said, at: list[int]) -> Tensor:
    return mean([(b.p[i].detach() * (b.p[i].detach().log() - a.p[i].log())).sum() for i in at])


def both(a: Said, b: Said) -> list[tuple[Tensor, Tensor]]:
    return list(zip(a.sums(), b.sums(), strict=True))


def level(a: Said, tau: float, offset: float = 0.0, below: float = 1.0) -> Tensor:
    return mean([(10 if float(n.detach()) < below else 1) * (n - tau - offset).abs()
                 for n in a.means()])  # fmt: skip


def hold(a: Said, b: Said, beta: float) -> Tensor:
    gaps = [n - m.detach() for n, m in zip(a.means(), b.means(), strict=True)]
    return mean([g**2 / (2 * beta) if abs(float(g.detach())) < beta else abs(g) - beta / 2
                 for g in gaps])  # fmt: skip


Equation = Callable[[Said, Said], Tensor]
EQUATIONS: list[tuple[str, dict[str, Any], Equation]] = [
    ("gd", {}, lambda a, b: mean(a.tokens())),
    ("gd", {"reduction": "rows"}, lambda a, b: mean(a.means())),
    ("gd", {"reduction": "batch_mean"}, lambda a, b: mean(a.tokens())),
    ("ga", {}, lambda a, b: -mean(a.tokens())),
    ("ga", {"reduction": "rows"}, lambda a, b: -mean(a.means())),
    ("npo", {}, lambda a, b: 20 * mean([softplus(-0.1 * (s - r)) for s, r in both(a, b)])),
    ("npo", {"beta": 1.0, "reduction": "batch_mean"},
     lambda a, b: 2 * softplus(-(mean(a.tokens()) - mean(b.tokens())))),
    ("npo", {"beta": 0.5, "reduction": "per_token"},
     lambda a, b: 4 * mean([softplus(r / 2 - s / 2) for s, r in
                            zip(a.tokens(), b.tokens(), strict=True)])),
    ("simnpo", {}, lambda a, b: 2 / 4.5 * mean([softplus(-4.5 * n) for n in a.means()])),
    ("simnpo", {"beta": 2.0, "delta": 0.5},
     lambda a, b: mean([softplus(-2 * (n - 0.5)) for n in a.means()])),
    ("eul", {}, lambda a, b: 1 / mean(a.tokens())),
    ("eul", {"alpha": 2.0, "reduction": "rows"}, lambda a, b: mean([2 / n for n in a.means()])),
    ("eul", {"alpha": 2.0, "power": 2}, lambda a, b: (2 / mean(a.tokens())) ** 2),
    ("kl", {}, lambda a, b: kl(a, b, FLAT)),
    ("kl", {"mask": "tokens"}, lambda a, b: kl(a, b, READ)),
    ("kl", {"mask": "all"}, lambda a, b: kl(a, b, list(range(len(LABELS))))),
    ("undial", {}, undial),
    ("undial", {"mask": "tokens"}, lambda a, b: undial(a, b, READ)),
    ("ceu", {}, ceu),
    ("wga", {}, lambda a, b: -mean([(-x.detach()).exp() * x for x in a.tokens()])),
    ("wga", {"beta": 3.0}, lambda a, b: -mean([(-3 * x.detach()).exp() * x for x in a.tokens()])),
    ("satimp", {}, lambda a, b: -mean(
        [(-5 * x.detach()).exp() * (1 - (-x.detach()).exp()) * x for x in a.tokens()])),
    ("satimp", {"mask": "tokens", "beta1": 2.0, "beta2": 3.0}, lambda a, b: -mean(
        [(-2 * a.l[i].detach()).exp() * (1 - (-a.l[i].detach()).exp()) ** 3 * a.l[i]
         for i in READ])),
    ("gd", {"mask": "tokens"}, lambda a, b: mean([a.l[i] for i in READ])),
    ("gd", {"mask": "tokens", "reduction": "batch_mean"},
     lambda a, b: mean([a.l[i] for i in READ])),
    ("gd", {"mask": "tokens", "reduction": "rows"}, lambda a, b: mean(a.row_means(READ))),
    ("ga", {"mask": "tokens"}, lambda a, b: -mean([a.l[i] for i in READ])),
    ("eul", {"mask": "tokens"}, lambda a, b: 1 / mean([a.l[i] for i in READ])),
    ("npo", {"mask": "tokens"}, lambda a, b: 20 * mean(
        [softplus(-0.1 * (s - r)) for s, r in
         zip(a.row_sums(READ), b.row_sums(READ), strict=True)])),
    ("simnpo", {"mask": "tokens"},
     lambda a, b: 2 / 4.5 * mean([softplus(-4.5 * n) for n in a.row_means(READ)])),
    ("wga", {"mask": "tokens"},
     lambda a, b: -mean([(-a.l[i].detach()).exp() * a.l[i] for i in READ])),
    ("ceu", {"skip_first": True}, ceu_after_the_first),
    ("pdu", {}, lambda a, b: margins(a, READ)),
    ("pdu", {"mask": "answer"}, lambda a, b: margins(a, FLAT)),
    ("pdu", {"mask": "all"}, lambda a, b: margins(a, list(range(len(LABELS))))),
    ("jensun_retain", {}, lambda a, b: mean([jsd(a.p[i], b.p[i].detach()) for i in FLAT])),
    ("jensun_retain", {"mask": "tokens"},
     lambda a, b: mean([jsd(a.p[i], b.p[i].detach()) for i in READ])),
    ("jensun_retain", {"mask": "all"},
     lambda a, b: mean([jsd(a.p[i], b.p[i].detach()) for i in range(len(LABELS))])),
    ("rmu", {"normalise": "width"}, lambda a, b: mean(
        [((a.hidden[i] - 6.5 * unit(WIDTH)) ** 2).mean() for i in READ])),
    ("rmu_retain", {"normalise": "width"}, lambda a, b: mean(
        [((a.hidden[i] - b.hidden[i].detach()) ** 2).mean() for i in READ])),
    ("rmu", {}, lambda a, b: mean([((a.hidden[i] - 6.5 * unit(WIDTH)) ** 2).sum() for i in READ])),
    ("adaptive_rmu", {}, adaptive),
    ("rmu_retain", {}, lambda a, b: mean(
        [((a.hidden[i] - b.hidden[i].detach()) ** 2).sum() for i in READ])),
    ("level", {}, lambda a, b: level(a, 3.0)),
    ("level", {"tau": 1.0, "offset": 0.5, "known_below": 2.0},
     lambda a, b: level(a, 1.0, 0.5, 2.0)),
    ("hold", {}, lambda a, b: hold(a, b, 1.0)),
    ("hold", {"beta": 0.1}, lambda a, b: hold(a, b, 0.1)),
    ("hold", {"mask": "tokens"}, lambda a, b: mean([
        g**2 / 2 if abs(float(g.detach())) < 1 else abs(g) - 0.5
        for g in [n - m.detach() for n, m in
                  zip(a.row_means(READ), b.row_means(READ), strict=True)]])),
    ("atwu", {}, lambda a, b: -mean(
        [0.5 * x * (-2.5 * x.detach()).exp() for x in a.tokens()])),
    ("atwu", {"beta": 1.0, "mask": "tokens"}, lambda a, b: -mean(
        [0.5 * a.l[i] * (-0.5 * a.l[i].detach()).exp() for i in READ])),
]  # fmt: skip


OTHERS = {"altpo", "dpo", "egup", "flat", "idk", "jensun", "whp"}  # compared in separate tests


def test_every_objective_is_compared_with_an_equation() -> None:
    assert {name for name, _, _ in EQUATIONS} | OTHERS == set(UNLEARNING_LOSSES.names())


@pytest.mark.parametrize("plain", [True, False], ids=["logits", "chunks"])
@pytest.mark.parametrize(
    ("name", "arguments", "equation"),
    EQUATIONS,
    ids=lambda v: "" if callable(v) else str(v)[:30],
)
def test_loss_equals_its_equation(
    name: str, arguments: dict[str, Any], equation: Equation, plain: bool
) -> None:
    policy, reference = Said(0), Said(1)
    with torch.no_grad():
        compared = Said(1).outputs(plain=plain)
    loss = UNLEARNING_LOSSES.get(name).fn
    ours = loss(policy.outputs(plain=plain), compared, **arguments)
    theirs = equation(policy, reference)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (mine,) = torch.autograd.grad(ours, policy.hidden, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, policy.hidden)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mask", ["answer", "tokens"])
@pytest.mark.parametrize("name", ["dpo", "altpo"])
def test_a_preference_loss_equals_its_equation(name: str, mask: str) -> None:
    chosen, rejected, chosen_ref, rejected_ref = (Said(seed) for seed in range(4))
    policy, reference = rejected.outputs(plain=False), rejected_ref.outputs(plain=True)
    policy.refusal, reference.refusal = chosen.outputs(plain=True), chosen_ref.outputs(plain=True)
    ours = UNLEARNING_LOSSES.get(name).fn(policy, reference, beta=0.5, mask=mask)
    terms = []
    at = READ if mask == "tokens" else FLAT
    for r in range(3):
        liked = -(chosen.row_sums(at)[r] - chosen_ref.row_sums(at)[r])
        disliked = -(rejected.row_sums(at)[r] - rejected_ref.row_sums(at)[r])
        terms.append(softplus(-0.5 * (liked - disliked)))
    theirs = 4 * mean(terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    for said in (chosen, rejected):
        (mine,) = torch.autograd.grad(ours, said.hidden, retain_graph=True)
        (other,) = torch.autograd.grad(theirs, said.hidden, retain_graph=True)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("mask", "at"), [("answer", FLAT), ("tokens", READ)])
def test_idk_is_the_likelihood_of_the_refusal(mask: str, at: list[int]) -> None:
    policy, refusal = Said(0).outputs(plain=True), Said(1)
    policy.refusal = refusal.outputs(plain=False)
    ours = UNLEARNING_LOSSES.get("idk").fn(policy, mask=mask)
    theirs = mean([refusal.l[i] for i in at])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (mine,) = torch.autograd.grad(ours, refusal.hidden, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, refusal.hidden)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("divergence", "mask"),
    [("kl", "answer"), ("kl", "tokens"), ("tv", "answer"), ("js", "answer"), ("pearson", "answer")],
)
def test_flat_equals_its_equation(divergence: str, mask: str) -> None:
    known, refused = Said(0), Said(1)
    policy = known.outputs(plain=False)
    policy.refusal = refused.outputs(plain=True)
    ours = UNLEARNING_LOSSES.get("flat").fn(policy, divergence=divergence, mask=mask)
    g: Callable[[Tensor], Tensor] = {
        "tv": lambda v: v.tanh() / 2,
        "js": lambda v: (2 / (1 + (-v).exp())).log(),
    }.get(divergence, lambda v: v)
    conjugate: Callable[[Tensor], Tensor] = {
        "kl": lambda u: (u - 1).exp(),
        "tv": lambda u: u,
        "js": lambda u: -(2 - u.exp()).log(),
        "pearson": lambda u: u**2 / 4 + u,
    }[divergence]
    terms = []
    read = [[i for i in READ if ROW[i] == r] for r in range(3)]
    for at in read if mask == "tokens" else ANSWERS:
        p = torch.stack([(-known.l[i]).exp() for i in at]).mean()
        q = torch.stack([(-refused.l[i]).exp() for i in at]).mean()
        terms.append(conjugate(g(p)) - g(q))
    theirs = mean(terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    for said in (known, refused):
        (mine,) = torch.autograd.grad(ours, said.hidden, retain_graph=True)
        (other,) = torch.autograd.grad(theirs, said.hidden, retain_graph=True)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mask", ["answer", "tokens"])
def test_jensun_is_the_divergence_from_the_refusal_token(mask: str) -> None:
    policy, refused = Said(0).outputs(plain=True), Said(1)
    policy.refusal = refused.outputs(plain=False)
    ours = UNLEARNING_LOSSES.get("jensun").fn(policy, mask=mask)
    terms = []
    for i in READ if mask == "tokens" else FLAT:
        target = torch.zeros(VOCABULARY, dtype=torch.float64)
        target[LABELS[i]] = 1
        m = (refused.p[i] + target) / 2
        to_target = -m[LABELS[i]].log()
        terms.append(((refused.p[i] * (refused.p[i] / m).log()).sum() + to_target) / 2)
    theirs = mean(terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (mine,) = torch.autograd.grad(ours, refused.hidden, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, refused.hidden)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("plain", [True, False], ids=["logits", "chunks"])
@pytest.mark.parametrize(("alpha", "mask"), [(5.0, "answer"), (1.0, "tokens")])
def test_whp_equals_its_equation(alpha: float, mask: str, plain: bool) -> None:
    said, base, strong = Said(0), Said(1), Said(2)
    policy = said.outputs(plain=plain)
    with torch.no_grad():
        reference = base.outputs(plain=plain)
        reference.reinforced = strong.outputs(plain=plain)
    ours = UNLEARNING_LOSSES.get("whp").fn(policy, reference, alpha=alpha, mask=mask)
    terms = []
    for i in READ if mask == "tokens" else FLAT:
        z, higher = base.logits[i].detach(), strong.logits[i].detach()
        generic = torch.stack([a - alpha * max(0.0, float(b - a)) for a, b in
                               zip(z, higher, strict=True)])  # fmt: skip
        t = generic.exp() / generic.exp().sum()
        terms.append(-(t * said.p[i].log()).sum())
    theirs = mean(terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (mine,) = torch.autograd.grad(ours, said.hidden, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, said.hidden)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mask", ["answer", "tokens"])
@pytest.mark.parametrize("efforts", [None, [0.5, 2.0, 0.0]])
def test_egup_equals_its_equation(efforts: list[float] | None, mask: str) -> None:
    said, base, proxy, proxy_ref = (Said(seed) for seed in range(4))
    policy, reference = said.outputs(plain=True), base.outputs(plain=True)
    policy.refusal, reference.refusal = proxy.outputs(plain=True), proxy_ref.outputs(plain=True)
    if efforts is not None:
        policy.efforts = torch.tensor(efforts)
    ours = UNLEARNING_LOSSES.get("egup").fn(policy, reference, beta=0.5, boundary=3.0, mask=mask)
    terms = []
    at = READ if mask == "tokens" else FLAT
    for r in range(3):
        push = 4 * softplus(-0.5 * (said.row_sums(at)[r] - base.row_sums(at)[r].detach()))
        beyond = said.row_means(at)[r] - proxy_ref.row_means(at)[r].detach()
        past = beyond**2 if float(beyond.detach()) > 0 else 0 * beyond
        terms.append((efforts or [1.0] * 3)[r] * push + 3 * past)
    theirs = mean(terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (mine,) = torch.autograd.grad(ours, said.hidden, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, said.hidden)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)
    assert {float(b.detach() - a.detach()) > 0 for a, b in
            zip(proxy_ref.row_means(at), said.row_means(at), strict=True)} == {
                True, False}  # fmt: skip


def test_atwu_weighs_each_token_by_its_score() -> None:
    said, scores = Said(0), torch.linspace(0, 1, len(LABELS)).double()
    policy = said.outputs(plain=False)
    policy.scores = scores
    ours = UNLEARNING_LOSSES.get("atwu").fn(policy, beta=2.0)
    weighted = [scores[i] * said.l[i] for i in FLAT]
    theirs = -mean([w * (-2 * w.detach()).exp() for w in weighted])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (mine,) = torch.autograd.grad(ours, said.hidden, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, said.hidden)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


def test_level_aims_at_the_level_of_each_row() -> None:
    policy = Said(0).outputs(plain=True)
    policy.levels = torch.tensor([1.0, 2.0, 4.0])
    gaps = [
        (10 if float(n.detach()) < 1 else 1) * (n - t).abs()
        for n, t in zip(Said(0).means(), (1.0, 2.0, 4.0), strict=True)
    ]
    torch.testing.assert_close(UNLEARNING_LOSSES.get("level").fn(policy), mean(gaps))


def test_level_with_a_profile_aims_at_the_level_of_each_token() -> None:
    said = Said(0)
    policy = said.outputs(plain=True)
    policy.levels = torch.tensor([1.0, 2.0, 4.0])
    first, second = ANSWERS[0], ANSWERS[1]
    profile = torch.zeros(len(KIND), dtype=torch.float64)
    profile[first] = torch.linspace(0.5, 1.5, len(first), dtype=torch.float64)
    profile[second] = 1.0  # the third sequence has none
    policy.profile = profile

    def by_token(at: list[int], level: float) -> Tensor:
        aims = [float(profile[i]) * (level + 0.2) for i in at]
        gaps = [(10 if float(said.l[i].detach()) < min(1.0, aim) else 1) * (said.l[i] - aim).abs()
                for i, aim in zip(at, aims, strict=True)]  # fmt: skip
        return mean(gaps)

    third = said.means()[2]
    whole = (10 if float(third.detach()) < 1 else 1) * (third - 4.2).abs()
    wanted = mean([by_token(first, 1.0), by_token(second, 2.0), whole])
    torch.testing.assert_close(UNLEARNING_LOSSES.get("level").fn(policy, offset=0.2), wanted)


@pytest.mark.parametrize("doubt", [0.0, 0.7, 0.9])
def test_even_moves_well_known_tokens_as_strongly_as_average_ones(doubt: float) -> None:
    said = Said(0)
    policy = said.outputs(plain=True)
    levels, below = (6.0, 2.0, 9.0), 8.0
    policy.levels, policy.doubt = torch.tensor(levels), doubt
    profile = torch.zeros(len(KIND), dtype=torch.float64)
    profile[ANSWERS[0]] = torch.linspace(0.5, 1.5, len(ANSWERS[0]), dtype=torch.float64)
    policy.profile = profile
    weak = 0

    def distance(i: int, aim: float) -> Tensor:
        nonlocal weak
        nll = said.l[i]
        pull = doubt * min(1.0, aim - float(nll.detach()))
        if float(1 - (-nll.detach()).exp()) >= pull:
            return aim - nll
        weak += 1
        return pull * (math.log(math.expm1(aim)) - (nll.exp() - 1).log())

    def known(i: int, aim: float) -> bool:
        return float(said.l[i].detach()) < min(below, aim)

    gaps = []
    for at, level, nll in zip(ANSWERS, levels, said.means(), strict=True):
        if at is ANSWERS[0]:
            aims = [float(profile[i]) * level for i in at]
            gaps.append(mean([10 * distance(i, aim) if known(i, aim) else (said.l[i] - aim).abs()
                              for i, aim in zip(at, aims, strict=True)]))  # fmt: skip
        elif float(nll.detach()) < min(level, below):
            gaps.append(10 * mean([distance(i, level) for i in at]))
        else:
            gaps.append((10 if float(nll.detach()) < below else 1) * (nll - level).abs())
    wanted = mean(gaps)
    found = UNLEARNING_LOSSES.get("level").fn(policy, known_below=below, even=True)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert bool(weak) == (doubt > 0)
    (mine,) = torch.autograd.grad(found, said.hidden, retain_graph=True)
    (other,) = torch.autograd.grad(wanted, said.hidden)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_memorised_token_does_not_vanish_with_even() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, :2, 1] = torch.tensor([20.0, 9.0])  # NLL about 0 and 0.0005
    logits.requires_grad_()
    labels, kind = torch.tensor([[0, 1, 1]]), torch.tensor([[1, 2, 2]])

    def gradient(even: bool) -> Tensor:
        policy = TokenOutputs.from_padded(logits, labels, kind)
        policy.levels, policy.doubt = torch.tensor([4.0]), 0.5
        loss = UNLEARNING_LOSSES.get("level").fn(policy, known_below=4.0, even=even)
        (found,) = torch.autograd.grad(loss, logits)
        return found[0, :2, 1]

    assert gradient(even=False).abs().max() < 0.01  # 10 / 2 tokens, times the NLL
    torch.testing.assert_close(
        gradient(even=True)[1], torch.tensor(0.5 * 10 / 2), rtol=1e-3, atol=0
    )
    assert gradient(even=True).isfinite().all()


def test_a_table_by_answer_token_is_read_in_the_order_of_the_tokens() -> None:
    policy = Said(0).outputs(plain=True)
    length = max(map(len, ANSWERS))
    table = torch.arange(1.0, 3 * length + 1).reshape(3, length)
    found = policy.of_answers(table)
    assert [float(x) for x in found[policy.answer]] == [
        float(table[r, k]) for r, at in enumerate(ANSWERS) for k in range(len(at))
    ]
    assert not found[~policy.answer].any()
