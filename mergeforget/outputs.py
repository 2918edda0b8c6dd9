"""Next-token predictions of a batch, the input of every loss.

Logits are shifted and masked once. Only positions that a loss reads are kept, as rows of a flat
table, so neither the padding side nor the lengths of other rows matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mergeforget.chunked_logprobs import (
    Projection,
    Target,
    divergence,
    label_logps,
    rows_of,
    values_of_logits,
)

PADDING, PROMPT, ANSWER = 0, 1, 2  # kinds of tokens
MASKS = {"answer": (ANSWER,), "tokens": (PROMPT, ANSWER), "all": (PADDING, PROMPT, ANSWER)}
"""Kinds of tokens counted by each value of ``mask``: answers, all but padding, or all."""


@dataclass(frozen=True)
class Part:
    """One micro-batch in a pass over several.

    Attributes:
        tokens, rows: Slices of its kept tokens and of its sequences in the pass.
        total: Weighted number of its sequences.
        kinds: Weighted number of its kept tokens by kind.
    """

    tokens: slice
    rows: slice
    total: float
    kinds: Mapping[int, float]


class SeveralMicroBatches(Exception):  # noqa: N818  (a signal to the caller, not a fault)
    """A loss read the mean of its micro-batch, but the outputs contain several micro-batches."""


@dataclass
class TokenOutputs:
    """Packed next-token predictions of a batch: one table row per predicted token.

    Attributes:
        source: (tokens, vocabulary) logits; row i predicts ``labels[i]``. Or a Projection
            to compute them, or None if only ``known_logps`` exist.
        labels: (tokens,) token ids.
        row: (tokens,) index of the token's sequence in the batch.
        rows: Number of sequences.
        kind: (tokens,) PADDING, PROMPT or ANSWER, the kind of the predicted token.
        hidden: Hidden states by layer, (tokens, width), if a loss reads them.
        row_total: Weighted number of sequences in the whole optimiser step; None uses this batch.
        token_total: Weighted number of positions of each kind in the whole optimiser step.
        refusal: The same model's outputs for refusals, or alternate answers, to the same prompts.
        reinforced: Outputs of the reinforced model, next to those of the reference; see whp.
        scores: (tokens,) score of each token in [0, 1]; see atwu.
        efforts: (rows,) weight of each sequence; see egup.
        weights: (rows,) weight of each sequence in means; weight 2 counts it twice. None is
            all ones.
        own_total: Weighted rows of this batch, and weighted positions by kind, if they are
            known; otherwise they are computed, which waits for the device.
        known_logps: (tokens,) precomputed log-probabilities.
        levels: (rows,) target NLL of each sequence, in nats; see the loss ``level``.
        profile: (tokens,) target NLL of each token relative to the level of its sequence; 0 for
            all tokens of a sequence without a profile.
        doubt: One minus the probability of an answer token, averaged over the rows of this set;
            see the loss ``level``.
        parts: Micro-batches that share these outputs; empty for a single one.
        notes: Values that a loss adds to the history.

    Losses compute means with ``row_mean`` and ``token_mean``. The losses of micro-batches then add
    up to the loss of the step, so gradient accumulation equals the larger batch.
    """

    source: Tensor | Projection | None
    labels: Tensor
    row: Tensor
    rows: int
    kind: Tensor
    hidden: dict[int, Tensor] | None = None
    row_total: float | None = None
    token_total: Mapping[int, float] | None = None
    refusal: TokenOutputs | None = None
    reinforced: TokenOutputs | None = None
    scores: Tensor | None = None
    efforts: Tensor | None = None
    weights: Tensor | None = None
    own_total: tuple[float, Mapping[int, float]] | None = None
    known_logps: Tensor | None = None
    levels: Tensor | None = None
    profile: Tensor | None = None
    doubt: float = 0.0
    parts: Sequence[Part] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_padded(cls, logits: Tensor, labels: Tensor, kind: Tensor) -> TokenOutputs:
        """Shift and pack the logits of a causal model.

        Args:
            logits: (batch, length, vocabulary)
            labels: (batch, length) token ids.
            kind: (batch, length) kind of each token; only ANSWER tokens are kept.
        """
        keep = kind[:, 1:] == ANSWER
        row = torch.arange(len(labels), device=labels.device)[:, None].expand_as(keep)[keep]
        packed = logits[:, :-1][keep], labels[:, 1:][keep]
        return cls(*packed, row, len(labels), kind[:, 1:][keep])

    @cached_property
    def answer(self) -> Tensor:
        """(tokens,) True where the predicted token belongs to an answer."""
        return self.kind == ANSWER

    @cached_property
    def counts(self) -> Tensor:
        """(rows,) answer tokens of each sequence, at least 1."""
        return self.counted((ANSWER,))

    def counted(self, kinds: tuple[int, ...]) -> Tensor:
        """(rows,) tokens of the given kinds in each sequence, at least 1."""
        ones = self._of(kinds).to(torch.float32)
        return ones.new_zeros(self.rows).index_add(0, self.row, ones).clamp(min=1)

    def of_answers(self, table: Tensor) -> Tensor:
        """(tokens,) values of answer tokens from a table, (rows, length), 0 elsewhere.

        The table has a value for each answer token of a sequence, in order; rows are contiguous.
        """
        start = (self.counts.cumsum(0) - self.counts)[self.row]
        place = (self.answer.cumsum(0) - 1 - start).long().clamp(0, table.shape[1] - 1)
        return torch.where(self.answer, table[self.row, place], table.new_zeros(()))

    @cached_property
    def first_answer_token(self) -> Tensor:
        """(tokens,) True at the first answer token of each sequence; rows must be contiguous."""
        seen = self.answer.long().cumsum(0)
        start = seen.new_full((self.rows,), len(seen) + 1)
        start = start.scatter_reduce(0, self.row[self.answer], seen[self.answer], "amin")
        return self.answer & (seen == start[self.row])

    @cached_property
    def logits(self) -> Tensor:
        """(tokens, vocabulary) logits; avoid them if possible, since the table is large."""
        assert self.source is not None, "a loss reads logits that its needs do not list"
        return self.source if isinstance(self.source, Tensor) else self.source.logits()

    @cached_property
    def token_logps(self) -> Tensor:
        """(tokens,) log-probability of each label, in nats, float32 or wider; <= 0."""
        if self.known_logps is not None:
            return self.known_logps
        assert self.source is not None, "there are neither logits nor log-probabilities"
        return label_logps(self.source, self.labels)

    def divergence(
        self, target: Target, reference: TokenOutputs | None = None
    ) -> tuple[Tensor, Tensor]:
        """``KL(target || self)`` and the target's entropy, each (tokens,), in nats.

        The target is constant; it may depend on the reference's logits. With a Projection, no
        (tokens, vocabulary) table is stored.
        """
        assert self.source is not None, "a loss reads logits that its needs do not list"
        other = None if reference is None else reference.source
        return divergence(self.source, other, self.labels, target)

    def of_logits(
        self,
        value: Callable[[Tensor, Tensor | None], Tensor],
        reference: TokenOutputs | None = None,
    ) -> Tensor:
        """(tokens,) a value of each position, from its logits and those of the reference.

        With a Projection, no (tokens, vocabulary) table is stored; the backward pass computes the
        logits again.

        Args:
            value: (logits, the reference's logits) of some positions, each (n, vocabulary) -> (n,).
        """
        assert self.source is not None, "a loss reads logits that its needs do not list"
        other = None if reference is None else reference.source
        return values_of_logits(self.source, other, value)

    def per_row(self, values: Tensor, kinds: tuple[int, ...] = (ANSWER,)) -> Tensor:
        """(rows,) sum of a value of each token over the tokens of some kinds in each sequence."""
        kept = torch.where(self._of(kinds), values, torch.zeros_like(values))
        return kept.new_zeros(self.rows).index_add(0, self.row, kept)

    def row_mean(self, values: Tensor) -> Tensor:
        """Mean of a value of each sequence, (rows,), over those of the optimiser step; a scalar."""
        total = self.own_rows if self.row_total is None else self.row_total
        return (values if self.weights is None else values * self._each(values)).sum() / (
            total or 1
        )

    def token_mean(self, values: Tensor, kinds: tuple[int, ...] = (ANSWER,)) -> Tensor:
        """Mean of a value of each token, (tokens,), over positions of some kinds; a scalar."""
        return self._sum(values, kinds) / (self.total(kinds) or 1)

    def total(self, kinds: tuple[int, ...] = (ANSWER,)) -> float:
        """Weighted number of tokens of some kinds in the optimiser step."""
        total = self._own_total if self.token_total is None else self.token_total
        return sum(total.get(kind, 0) for kind in kinds)

    def batch_mean(self, values: Tensor, kinds: tuple[int, ...] = (ANSWER,)) -> Tensor:
        """Mean over some tokens of this micro-batch alone, not of the whole step.

        Raises:
            SeveralMicroBatches: The outputs contain several; the caller separates them.
        """
        self._of_one()
        return self._sum(values, kinds) / (sum(self._own_total[kind] for kind in kinds) or 1)

    @property
    def own_rows(self) -> float:
        """Weighted number of sequences in this batch."""
        if self.own_total is not None:
            return self.own_total[0]
        return self.rows if self.weights is None else float(self.weights.sum())

    @property
    def share(self) -> float:
        """Share of the optimiser step's sequences that this batch holds, in [0, 1].

        Raises:
            SeveralMicroBatches: The outputs contain several; the caller separates them.
        """
        self._of_one()
        total = self.own_rows if self.row_total is None else self.row_total
        return self.own_rows / (total or 1)

    def micro_batches(self) -> list[TokenOutputs]:
        """Return the outputs of each micro-batch as views, so gradients reach the joint pass."""
        none = [None] * len(self.parts)
        refusals = none if self.refusal is None else self.refusal.micro_batches()
        reinforced = none if self.reinforced is None else self.reinforced.micro_batches()
        known = self.__dict__.get("token_logps", self.known_logps)
        return [
            TokenOutputs(
                rows_of(self.source, part.tokens),
                self.labels[part.tokens],
                self.row[part.tokens] - part.rows.start,
                part.rows.stop - part.rows.start,
                self.kind[part.tokens],
                hidden={n: h[part.tokens] for n, h in (self.hidden or {}).items()} or None,
                row_total=self.row_total,
                token_total=self.token_total,
                refusal=refusal,
                reinforced=strong,
                scores=None if self.scores is None else self.scores[part.tokens],
                efforts=None if self.efforts is None else self.efforts[part.rows],
                weights=None if self.weights is None else self.weights[part.rows],
                own_total=(part.total, part.kinds),
                known_logps=None if known is None else known[part.tokens],
                levels=None if self.levels is None else self.levels[part.rows],
                profile=None if self.profile is None else self.profile[part.tokens],
                doubt=self.doubt,
            )
            for part, refusal, strong in zip(self.parts, refusals, reinforced, strict=True)
        ]

    def _of_one(self) -> None:
        if len(self.parts) > 1:
            raise SeveralMicroBatches

    def sequence_logps(self, kinds: tuple[int, ...] = (ANSWER,)) -> Tensor:
        """(rows,) log-probability of each whole answer (or of other kinds of token), in nats."""
        return self.per_row(self.token_logps, kinds)

    def nll(self, kinds: tuple[int, ...] = (ANSWER,)) -> Tensor:
        """(rows,) mean negative log-likelihood of the tokens of some kinds, in nats."""
        return -self.sequence_logps(kinds) / self.counted(kinds).to(self.token_logps.dtype)

    @cached_property
    def _own_total(self) -> Mapping[int, float]:
        if self.own_total is not None:
            return self.own_total[1]
        each = torch.ones_like(self.kind) if self.weights is None else self.weights[self.row]
        return {kind: float(each[self.kind == kind].sum()) for kind in (PADDING, PROMPT, ANSWER)}

    def _each(self, values: Tensor) -> Tensor:
        assert self.weights is not None
        return self.weights.to(values)

    def _sum(self, values: Tensor, kinds: tuple[int, ...]) -> Tensor:
        if self.weights is not None:
            values = values * self._each(values)[self.row]
        return torch.where(self._of(kinds), values, torch.zeros_like(values)).sum()

    def _of(self, kinds: tuple[int, ...]) -> Tensor:
        """(tokens,) True where the predicted token has one of the kinds."""
        if kinds == (ANSWER,):
            return self.answer
        return torch.isin(self.kind, torch.tensor(kinds, device=self.kind.device))
