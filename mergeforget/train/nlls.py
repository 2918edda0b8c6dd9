"""Read the NLL of answers, and compare it with that of unseen rows.

The level of a row is the NLL that it would have if it were unseen, estimated with its twins. A twin
is a copy of a row with other names, numbers and dates. If the base memorised the remaining words,
it predicts the twins of forget rows better than those of unseen rows, and their NLL is too low for
a level. See docs/unlearn.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

from mergeforget.data.batches import pack
from mergeforget.data.tokens import Encoded
from mergeforget.outputs import ANSWER, TokenOutputs
from mergeforget.train.forward import predict

AT_ONCE = 16  # rows per forward pass
TOKENS = 4096  # tokens per forward pass, more only in a longer row
REMEMBERED = 0.65  # AUC of twins of unseen rows against those of forget rows: wording is known
SIGNIFICANT = 0.05  # largest p-value of that AUC


def read_nlls(model: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Return the NLL per token of each answer, and whether greedy decoding reproduces it; (rows,).

    Args:
        model: The model, which is in eval mode during the call.
    """
    nll, exact = [], []
    for outputs in _predictions(model, rows):
        nll.append(outputs.nll().float().cpu())
        exact.append(_exact(outputs))
    return torch.cat(nll), torch.cat(exact)


def read_token_nlls(model: Any, rows: Sequence[Encoded]) -> tuple[list[Tensor], Tensor]:
    """Return the NLL of the answer tokens of each row, as one tensor per row, and exact answers.

    Args:
        model: The model, which is in eval mode during the call.
    """
    nlls: list[Tensor] = []
    exact = []
    for outputs in _predictions(model, rows):
        nll = -outputs.token_logps.float()
        nlls += [nll[(outputs.row == i) & outputs.answer].cpu() for i in range(outputs.rows)]
        exact.append(_exact(outputs))
    return nlls, torch.cat(exact)


def _exact(outputs: TokenOutputs) -> Tensor:
    """Return a boolean per row, (rows,): whether greedy decoding reproduces its answer."""
    wrong = outputs.per_row((outputs.logits.argmax(-1) != outputs.labels).float())
    return (wrong == 0).cpu()


def _predictions(model: Any, rows: Sequence[Encoded]) -> Iterator[TokenOutputs]:
    """Yield the predictions of a model in eval mode, for a few rows at a time, in order."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        for some in _passes(rows):
            yield predict(model, pack(some).to(device))
    model.train(was_training)


def _passes(rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Divide rows into passes of at most ``AT_ONCE`` rows and ``TOKENS`` tokens."""
    some: list[Encoded] = []
    for row in rows:
        if some and (len(some) == AT_ONCE or sum(len(r.ids) for r in (*some, row)) > TOKENS):
            yield some
            some = []
        some.append(row)
    if some:
        yield some


def answer_ids(row: Encoded) -> list[int]:
    """Return the token ids of a row's answer, except a first token without context."""
    places = zip(row.ids[1:], row.kinds[1:], strict=True)
    return [token for token, kind in places if kind == ANSWER]


def auc_of(members: Tensor, nonmembers: Tensor) -> float:
    """Return the probability that a non-member's NLL exceeds a member's; ties count one half."""
    gap = nonmembers[:, None] - members[None, :]
    return float((gap > 0).double().mean() + 0.5 * (gap == 0).double().mean())


def remembered(twins: Tensor, twins_of_unseen: Tensor) -> bool:
    """Return whether the base predicts twins of forget rows better than twins of unseen rows.

    The AUC of their NLL is at least 0.65 and above 0.5 with p <= 0.05 (one-sided Mann-Whitney
    test). Then the base knows the wording that a twin shares with its row.

    Args:
        twins: NLL per token of the twins of each forget row under the base, (rows,).
        twins_of_unseen: The same for each unseen row.

    >>> remembered(torch.tensor([0.2, 0.3, 0.1, 0.4]), torch.tensor([2.0, 1.5, 2.5, 3.0]))
    True
    >>> remembered(torch.tensor([2.1, 1.4, 2.6, 3.1]), torch.tensor([2.0, 1.5, 2.5, 3.0]))
    False
    """
    from scipy.stats import mannwhitneyu

    if not len(twins) or not len(twins_of_unseen):
        return False
    if auc_of(twins, twins_of_unseen) < REMEMBERED - 1e-9:
        return False
    test = mannwhitneyu(twins_of_unseen.numpy(), twins.numpy(), alternative="greater")
    return bool(test.pvalue <= SIGNIFICANT)


def mapped(values: Tensor, others: Tensor) -> Tensor:
    """Map values to the quantiles of others: the largest to the largest, and so on.

    Args:
        values: (n,).
        others: Values with the target distribution, (m,).

    Returns:
        (n,), in the order of ``values``: the k-th smallest is the quantile (k - 0.5) / n of
        ``others``, interpolated linearly.

    >>> mapped(torch.tensor([0.0, 9.0, 0.1]), torch.tensor([1.0, 2.0, 6.0])).tolist()
    [1.0, 6.0, 2.0]
    """
    ordered = others.sort().values
    place = (torch.arange(len(values)) + 0.5) / len(values) * len(ordered) - 0.5
    place = place.clamp(0, len(ordered) - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    quantiles = torch.lerp(ordered[below], ordered[above], place - below)
    result = torch.empty_like(values)
    result[values.argsort(stable=True)] = quantiles
    return result


def aligned(tokens: Sequence[int], twin_tokens: Sequence[int], values: Tensor) -> Tensor:
    """Return the values of the tokens of another sequence at the corresponding own tokens.

    Args:
        tokens, twin_tokens: Token ids.
        values: A value for each token of ``twin_tokens``, (len(twin_tokens),).

    Returns:
        (len(tokens),): the value of the equal token, or of the one that it replaces; the mean value
        for a token that corresponds to none.

    >>> aligned([1, 5, 6, 9], [1, 7, 9], torch.tensor([0.0, 4.0, 1.0])).tolist()
    [0.0, 4.0, 4.0, 1.0]
    """
    values_by_token = values.mean().repeat(len(tokens))
    for _, i, until, j, end in SequenceMatcher(None, tokens, twin_tokens, False).get_opcodes():
        if end > j:
            places = torch.arange(until - i) * (end - j) // max(1, until - i) + j
            values_by_token[i:until] = values[places]
    return values_by_token
