"""Members, matched non-members, and the signals of membership inference."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergeforget.console import say
from mergeforget.data.overlap import shared_rows
from mergeforget.data.schema import Row
from mergeforget.data.tokens import check_token_ids, cut_to_positions
from mergeforget.data.transforms import limit_rows
from mergeforget.data.twins import stands_in
from mergeforget.errors import InputError
from mergeforget.evaluate.batching import in_batches
from mergeforget.evaluate.likelihood import TokenLikelihoods
from mergeforget.models import check_resident

RATIO = 2  # maximum number of non-members per member, if there are at least FEW / RATIO members
FEW = 48  # non-members that are drawn for fewer members


def matched(
    members: Sequence[Row], outside: Sequence[Row], seed: int
) -> tuple[list[Row], list[Row]]:
    """Return the members that can be compared, and non-members with the same shares of tasks."""
    nonmembers = match_tasks(members, outside, seed)
    return of_tasks(members, nonmembers), nonmembers


def unseen(outside: Sequence[Row], trained: Sequence[Row], where: object) -> list[Row]:
    """Return the rows about people and documents that are not in the training data.

    Rows about a trained subject are excluded with a warning: the model learned about that person,
    so they cannot serve as non-members. Subjects that are only the id of the row are ignored.

    Args:
        where: File of ``outside``, for messages.

    Raises:
        InputError: A row is part of the training data, or all rows are about trained subjects.
    """
    shared = [other.id for _, other in shared_rows(trained, outside)]
    if shared:
        raise InputError(
            f"{where}: {len(shared)} of {len(outside)} rows are also in the forget or retain set, "
            f"for example {shared[0]}. Non-members must be rows that are not in the training data."
        )
    subjects = {row.subject for row in trained if row.subject != row.id}
    remaining = [row for row in outside if row.subject not in subjects or row.subject == row.id]
    left_out = len(outside) - len(remaining)
    if left_out and not remaining:
        raise InputError(
            f"{where}: all {left_out} rows are about people or documents that were trained on, for "
            f"example {outside[0].subject!r}. Non-members must be about others; give such rows "
            "with --holdout FILE."
        )
    if left_out:
        say(
            f"Warning: {where}: {left_out} of {len(outside)} rows are about people or documents "
            "that were trained on. They are excluded from the non-members."
        )
    return remaining


def match_tasks(members: Sequence[Row], outside: Sequence[Row], seed: int) -> list[Row]:
    """Draw non-members with the same shares of tasks as the members.

    A different mixture of tasks would distinguish members from non-members by itself. Draws up to
    twice as many non-members as members, because the noise of the AUC is that of the smaller group,
    or up to 48 for few members, which are all that is to be forgotten and no sample. The ratio is
    that which every task has, up to rounding. Of a task with fewer non-members than members, all
    are used. Whole documents are drawn within each task, twins only after all other rows. If no
    task is shared, tasks are ignored.
    """
    wanted = Counter(row.task for row in members)
    there = Counter(row.task for row in outside)
    most = max(RATIO, FEW / max(1, len(members)))
    if not wanted.keys() & there.keys():
        return _draw(outside, int(most * len(members) + 1e-9), seed)
    plenty = min(there[task] / n for task, n in wanted.items() if there[task])
    ratio = min(most, max(1.0, plenty))
    drawn = {
        row.id
        for task, n in sorted(wanted.items())
        for row in _draw([r for r in outside if r.task == task], int(ratio * n + 1e-9), seed)
    }
    return [row for row in outside if row.id in drawn]


def of_tasks(members: Sequence[Row], nonmembers: Sequence[Row]) -> list[Row]:
    """Return the members whose task has non-members, or all members if no task is shared."""
    tasks = {row.task for row in nonmembers}
    shared = [row for row in members if row.task in tasks]
    return shared or list(members)


def _draw(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """Draw whole documents with at most ``n`` rows in total, and at least the smallest one.

    Of rows and twins of them, all rows are drawn before the first twin.
    """
    real = [row for row in rows if not stands_in(row)]
    if 0 < len(real) < min(n, len(rows)):
        return [*real, *_draw([row for row in rows if stands_in(row)], n - len(real), seed)]
    if real:
        rows = real
    smallest = min(Counter(row.subject for row in rows).values(), default=0)
    return limit_rows(rows, max(n, smallest), seed)[0] if rows else []


SHARES = (20, 40)  # percent of the tokens with the lowest log-probability, for min-k


def membership_signals(one: TokenLikelihoods, text: str) -> dict[str, float]:
    """Return the signals ``loss``, ``zlib``, ``min_k_20``, ``min_k_plus_20``, ... of a document.

    Source: loss: arXiv:1709.01604; zlib: arXiv:2012.07805; min-k%: arXiv:2310.16789;
        min-k%++: arXiv:2404.02936.
    """
    if not len(one.logps):
        return {}
    deviation = np.maximum(one.deviation, 1e-6)  # a vocabulary of one certain token has none
    standardised = (one.logps - one.mean) / deviation
    signals = {"loss": -one.nll, "zlib": -one.nll / len(zlib.compress(text.encode()))}
    for share in SHARES:
        signals[f"min_k_{share}"] = lowest_mean(one.logps, share)
        signals[f"min_k_plus_{share}"] = lowest_mean(standardised, share)
    return signals


def lowest_mean(values: NDArray[np.float64], percent: int) -> float:
    """Return the mean of the lowest ``percent`` of the values, of at least one."""
    k = max(1, len(values) * percent // 100)
    return float(np.partition(values, k - 1)[:k].mean())


PROMPT = -100  # label of a token whose loss does not count


def gradient_norms(
    model: Any,
    texts: Sequence[tuple[list[int], int]],
    *,
    label: str = "Gradients",
    on_done: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Return the norm of the gradient of each text's mean NLL with respect to all weights.

    Each text needs a backward pass of its own. The gradient of a weight is added to the norm and
    freed as soon as it is computed, so that the gradients are never all in memory.

    Args:
        texts: Token ids, and the index of the first token to score (0 or 1 for all).
        on_done: Called with the index and the norm of each text when it is done.

    Source: Pandora's White-Box, arXiv:2402.17012; OpenUnlearning's GradNorm.
    """
    check_token_ids(model, [ids for ids, _ in texts])
    check_resident(model, "A gradient norm")
    fitting, cuts = cut_to_positions(model, [ids for ids, _ in texts])
    starts = [max(0, start - cut) for (_, start), cut in zip(texts, cuts, strict=True)]
    return in_batches(
        model,
        [len(ids) for ids in fitting],
        lambda places: [_norm(model, fitting[i], starts[i]) for i in places],
        budget=1,
        label=label,
        on_done=on_done,
    )


def _norm(model: Any, ids: list[int], start: int) -> float:
    """Return the gradient norm of one text; 0 if it has no predicted token."""
    if len(ids) < 2 or start >= len(ids):
        return 0.0
    inputs = torch.tensor([ids], device=model.device)
    labels = inputs.clone()
    labels[:, :start] = PROMPT
    with torch.enable_grad(), _squares(model) as squares:
        model(input_ids=inputs, labels=labels, use_cache=False).loss.backward()
    return float(torch.stack([square.cpu() for square in squares]).sum().sqrt())


@contextmanager
def _squares(model: Any) -> Iterator[list[Tensor]]:
    """Collect the squared norm of each gradient, in float32, during a backward pass."""
    squares: list[Tensor] = []

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        squares.append(parameter.grad.float().square().sum())
        parameter.grad = None

    parameters = list(model.parameters())
    wanted = [p.requires_grad for p in parameters]
    handles = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(parameter.is_floating_point())
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(take))
        yield squares
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.grad = None
            parameter.requires_grad_(before)
