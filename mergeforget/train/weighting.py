"""Weights of tokens and rows of the forget set, computed from hidden states: ATWU and EGUP.

Both read the hidden states after the model's final norm, the input of its output layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeforget.data.batches import pack
from mergeforget.data.tokens import Encoded
from mergeforget.outputs import ANSWER, MASKS, TokenOutputs
from mergeforget.train.forward import LAST, as_reference, predict
from mergeforget.train.reference import in_groups
from mergeforget.train_config import Scorer, Term


class TokenScorer:
    """A linear scorer of forget tokens, trained in alternation with the model (ATWU).

    ``g = sigmoid(w . h + b)``, with w and b 0 at the start. Every ``spec.every`` steps, one step of
    SGD with momentum 0.9 minimises the forget loss for fixed hidden states, plus the entropy of the
    scores, the squared distance of the share of selected tokens (g > 0.5) of each row from
    ``spec.budget``, and the squared norm of w and b.

    Source: the code of Yüce et al. 2026, arXiv:2606.06320 (ScorerTrainerSBGradDiff).

    Args:
        width: Width of the hidden states.
        spec: Settings of the recipe.
        term: The atwu term, whose ``beta`` and ``mask`` the scorer's objective shares.
    """

    def __init__(self, width: int, spec: Scorer, term: Term, device: Any = "cpu") -> None:
        self.spec = spec
        self.beta = float(term.arguments.get("beta", 5.0))
        self.kinds = MASKS[str(term.arguments.get("mask", "answer"))]
        self.weight = torch.zeros(width, device=device, requires_grad=True)
        self.bias = torch.zeros(1, device=device, requires_grad=True)
        self.optimizer = torch.optim.SGD(
            [self.weight, self.bias], lr=spec.rate, momentum=0.9, weight_decay=1e-4
        )

    def due(self, step: int) -> bool:
        """Return whether the scorer is updated in a step of the model, counted from 0."""
        return (step + 1) % self.spec.every == 0

    def score(self, outputs: TokenOutputs) -> Tensor:
        """Return the score of each token, (tokens,), in [0, 1]."""
        return torch.sigmoid(states(outputs) @ self.weight + self.bias)

    def accumulate(self, outputs: TokenOutputs) -> Tensor:
        """Add the gradient of the scorer's objective on a pass, and return the objective."""
        g = self.score(outputs)
        nll = -outputs.token_logps.detach().to(g)
        weighted = g * nll
        forget = -outputs.token_mean(weighted * (-self.beta * weighted.detach()).exp(), self.kinds)
        clamped = g.clamp(1e-6, 1 - 1e-6)
        entropy = -(clamped * clamped.log() + (1 - clamped) * (1 - clamped).log())
        selected = (g > 0.5).to(g) - g.detach() + g  # straight-through estimator
        shares = outputs.per_row(selected, self.kinds) / outputs.counted(self.kinds).to(g)
        loss = (
            forget
            + self.spec.entropy * outputs.token_mean(entropy, self.kinds)
            + self.spec.population * outputs.row_mean((shares - self.spec.budget) ** 2)
        )
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Take one step with the accumulated gradient, clipped at norm 1."""
        squares = self.weight.square().sum() + self.bias.square().sum()
        (self.spec.l2 * squares).backward()
        torch.nn.utils.clip_grad_norm_([self.weight, self.bias], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return everything that a resumed training needs."""
        values = {"weight": self.weight.detach().clone(), "bias": self.bias.detach().clone()}
        for name, parameter in (("weight", self.weight), ("bias", self.bias)):
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                values[f"{name}_momentum"] = momentum.clone()
        return values

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore ``state()``."""
        for name, parameter in (("weight", self.weight), ("bias", self.bias)):
            parameter.data.copy_(state[name])
            if f"{name}_momentum" in state:
                momentum = state[f"{name}_momentum"].to(parameter)
                self.optimizer.state[parameter]["momentum_buffer"] = momentum


class Entanglement:
    """Efforts of forget rows: resemblance to retain rows, and to the row's own first state (EGUP).

    The effort of row i is ``inter_i * max(0, cos(h_i, h_i,ref))``. ``inter_i`` is the largest
    cosine similarity of the row's mean hidden state with that of a retain row, both under the
    reference, divided by its mean over the forget rows. The second factor is 1 at the start and
    falls as training moves the row's mean hidden state.

    Source: after the abstract of Liu et al. 2025, arXiv:2508.20443, which gives no formula.

    Args:
        forget: Mean hidden state of each forget row under the reference, (rows, width).
        retain: The same of the retain rows.
    """

    def __init__(self, forget: Tensor, retain: Tensor) -> None:
        self.forget = torch.nn.functional.normalize(forget, dim=-1)
        directions = torch.nn.functional.normalize(retain, dim=-1)
        inter = (self.forget @ directions.T).max(-1).values.clamp(min=0)
        self.inter = inter / inter.mean() if float(inter.mean()) > 0 else torch.ones_like(inter)

    def efforts(self, outputs: TokenOutputs, index: Tensor) -> Tensor:
        """Return the effort of each row of a pass, (rows,), without a gradient.

        Args:
            index: (rows,) index of each row in the forget set.
        """
        indices = index.to(self.forget.device)
        now = torch.nn.functional.normalize(row_states(outputs), dim=-1).to(self.forget)
        moved = (now * self.forget[indices]).sum(-1).clamp(min=0)
        return (self.inter[indices] * moved).detach()


def entanglement_of(
    model: Any, encoded: Mapping[str, Sequence[Encoded]], *, folds: int = 0
) -> Entanglement:
    """Measure the hidden states of the forget and the retain rows under the reference.

    Args:
        model: The base model with its adapter.
        folds: Number of folds in layered unlearning, else 0. The retain set then also has forget
            rows of later folds, which are left out: a row resembles itself most.
    """
    retain = [one for one in encoded["retain"] if one.fold == folds]
    device = next(model.parameters()).device
    states_by_set = {}
    with as_reference(model):
        for name, examples in (("forget", encoded["forget"]), ("retain", retain)):
            parts = []
            for rows in in_groups(examples):
                batch = pack(rows, (ANSWER,)).to(device)
                parts.append(row_states(predict(model, batch, layers=[LAST])))
            states_by_set[name] = torch.cat(parts)
    return Entanglement(states_by_set["forget"], states_by_set["retain"])


def states(outputs: TokenOutputs) -> Tensor:
    """Return the final hidden state before each predicted token, (tokens, width), detached."""
    assert outputs.hidden is not None, "hidden states of the last layer were not captured"
    return outputs.hidden[LAST].detach().float()


def row_states(outputs: TokenOutputs) -> Tensor:
    """Return the mean state of each row's answer tokens, (rows, width), detached."""
    every = states(outputs) * outputs.answer[:, None]
    sums = every.new_zeros(outputs.rows, every.shape[1]).index_add(0, outputs.row, every)
    return sums / outputs.counts.to(sums)[:, None]
