"""What a model says about some tokens: the one thing that every objective reads.

Logits are shifted and masked once, and only the positions that a loss reads are kept: rows of a
flat table, whatever the padding side or the length of the others in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING, PROMPT, ANSWER = 0, 1, 2  # kinds of position


@dataclass
class TokenOutputs:
    """Next-token predictions of a batch, packed: one row a predicted token.

    Attributes:
        logits: (tokens, vocabulary); row i predicts ``labels[i]``.
        labels: (tokens,) token ids.
        row: (tokens,) which sequence of the batch the token belongs to.
        rows: number of sequences.
        kind: (tokens,) PADDING, PROMPT or ANSWER: what the predicted token is.
        hidden: layer -> (tokens, width), where a loss asked for hidden states.
        row_total: sequences of the whole optimiser step; this batch's own when None.
        token_total: positions by kind of the whole optimiser step; this batch's own when None.

    A loss takes its means by ``row_mean`` and ``token_mean``: then the losses of the parts of a
    batch add up to the loss of the batch, and gradient accumulation equals the larger batch.
    """

    logits: Tensor
    labels: Tensor
    row: Tensor
    rows: int
    kind: Tensor
    hidden: dict[int, Tensor] | None = None
    row_total: int | None = None
    token_total: dict[int, int] | None = None

    @classmethod
    def from_padded(cls, logits: Tensor, labels: Tensor, kind: Tensor) -> TokenOutputs:
        """Shift and pack what a causal model returns.

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
        ones = self.answer.to(torch.float32)
        return ones.new_zeros(self.rows).index_add(0, self.row, ones).clamp(min=1)

    @cached_property
    def token_logps(self) -> Tensor:
        """(tokens,) log-probability of each label, in nats, float32 or wider; <= 0."""
        return -F.cross_entropy(widened(self.logits), self.labels, reduction="none")

    def per_row(self, values: Tensor) -> Tensor:
        """(rows,) sum of a value of each token over the answer tokens of each sequence."""
        kept = torch.where(self.answer, values, torch.zeros_like(values))
        return kept.new_zeros(self.rows).index_add(0, self.row, kept)

    def row_mean(self, values: Tensor) -> Tensor:
        """Mean of a value of each sequence, (rows,), over those of the optimiser step; a scalar."""
        return values.sum() / (self.row_total or self.rows)

    def token_mean(self, values: Tensor, kinds: tuple[int, ...] = (ANSWER,)) -> Tensor:
        """Mean of a value of each token, (tokens,), over positions of some kinds; a scalar."""
        kept = torch.isin(self.kind, torch.tensor(kinds, device=self.kind.device))
        if self.token_total is None:
            total = int(kept.sum())
        else:
            total = sum(self.token_total.get(kind, 0) for kind in kinds)
        return torch.where(kept, values, torch.zeros_like(values)).sum() / max(1, total)

    def sequence_logps(self) -> Tensor:
        """(rows,) log-probability of each whole answer, in nats."""
        return self.per_row(self.token_logps)

    def nll(self) -> Tensor:
        """(rows,) mean negative log-likelihood of each answer's tokens, in nats."""
        return -self.sequence_logps() / self.counts.to(self.token_logps.dtype)


def widened(logits: Tensor) -> Tensor:
    """float32 where they are narrower: a softmax over a vocabulary loses bits in a half type."""
    return logits if logits.dtype == torch.float64 else logits.float()
