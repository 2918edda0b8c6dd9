"""Members and non-members of the same kind: what differs must be membership alone."""

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
from mergeforget.data.schema import Row
from mergeforget.data.tokens import check_token_ids, cut_to_positions
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.batching import in_batches
from mergeforget.evaluate.likelihood import TokenLikelihoods

RATIO = 2  # non-members to one member, at most


def matched(
    members: Sequence[Row], outside: Sequence[Row], seed: int
) -> tuple[list[Row], list[Row]]:
    """Non-members in the members' shares of tasks, and the members that they compare with."""
    nonmembers = match_tasks(members, outside, seed)
    return of_tasks(members, nonmembers), nonmembers


def unseen(outside: Sequence[Row], trained: Sequence[Row], where: object) -> list[Row]:
    """Return the rows about people and documents that no training saw.

    Rows about a trained subject are left out with a warning: the model learned about that person,
    so such rows are no non-members. A subject that is only the row's own id tells nothing and is
    not compared.

    Args:
        where: File of ``outside``, for messages.

    Raises:
        InputError: A row was trained on itself, or all rows are about trained subjects.
    """
    documents = {row.document for row in trained}
    shared = [row.id for row in outside if row.document in documents]
    if shared:
        raise InputError(
            f"{where}: {len(shared)} of {len(outside)} rows are also in the forget or retain set, "
            f"for example {shared[0]}. Non-members must be rows that no training saw."
        )
    subjects = {row.subject for row in trained if row.subject != row.id}
    kept = [row for row in outside if row.subject not in subjects or row.subject == row.id]
    left_out = len(outside) - len(kept)
    if left_out and not kept:
        raise InputError(
            f"{where}: all {left_out} rows are about people or documents that were trained on, for "
            f"example {outside[0].subject!r}. Non-members must be about others; give such rows "
            "with --holdout FILE."
        )
    if left_out:
        say(
            f"Warning: {where}: {left_out} of {len(outside)} rows are about people or documents "
            "that were trained on. They are left out of the non-members."
        )
    return kept


def match_tasks(members: Sequence[Row], outside: Sequence[Row], seed: int) -> list[Row]:
    """Non-members in the members' shares of tasks: another mixture would tell them apart.

    Twice as many as members where every task has them, since a likelihood costs little and the AUC
    is as noisy as the smaller side; at least as many where there are so many. Whole documents,
    each task by itself; where no task is shared, tasks do not count.
    """
    wanted = Counter(row.task for row in members)
    there = Counter(row.task for row in outside)
    if not wanted.keys() & there.keys():
        return _draw(outside, RATIO * len(members), seed)
    plenty = min(there[task] / n for task, n in wanted.items() if there[task])
    ratio = min(RATIO, max(1, int(plenty)))
    drawn = {
        row.id
        for task, n in sorted(wanted.items())
        for row in _draw([r for r in outside if r.task == task], ratio * n, seed)
    }
    return [row for row in outside if row.id in drawn]


def of_tasks(members: Sequence[Row], nonmembers: Sequence[Row]) -> list[Row]:
    """Members of the tasks that have non-members to compare with, where tasks count."""
    tasks = {row.task for row in nonmembers}
    shared = [row for row in members if row.task in tasks]
    return shared or list(members)


def _draw(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """Whole documents, at most ``n`` rows; all of them where even the smallest has more."""
    smallest = min(Counter(row.subject for row in rows).values(), default=0)
    return limit_rows(rows, max(n, smallest), seed)[0] if rows else []


SHARES = (20, 40)  # percent of the tokens, the lowest, that min-k reads


def membership_signals(one: TokenLikelihoods, text: str) -> dict[str, float]:
    """``loss``, ``zlib``, ``min_k_20``, ``min_k_plus_20``, ... of a document.

    Source: loss: arXiv:1709.01604; zlib: arXiv:2012.07805; min-k%: arXiv:2310.16789;
        min-k%++: arXiv:2404.02936.
    """
    if not len(one.logps):
        return {}
    deviation = np.maximum(one.deviation, 1e-6)  # a vocabulary of one certain token has none
    standardised = (one.logps - one.mean) / deviation
    found = {"loss": -one.nll, "zlib": -one.nll / len(zlib.compress(text.encode()))}
    for share in SHARES:
        found[f"min_k_{share}"] = lowest_mean(one.logps, share)
        found[f"min_k_plus_{share}"] = lowest_mean(standardised, share)
    return found


def lowest_mean(values: NDArray[np.float64], percent: int) -> float:
    """Mean of the lowest ``percent`` of the values, at least one of them."""
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
    """Norm of the gradient of each text's mean NLL with respect to all weights of the model.

    Each text takes a backward pass of its own; a weight's gradient is added to the norm and freed
    as soon as it is there, so that memory never holds the gradients of all.

    Args:
        texts: token ids, and the place of the first token that counts (0 or 1 for all).
        on_done: is given each text's place and norm as soon as it is done.

    Source: Pandora's White-Box, arXiv:2402.17012; OpenUnlearning's GradNorm.
    """
    check_token_ids(model, [ids for ids, _ in texts])
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
    """Of one text; 0 for one without a token to predict."""
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
    """Squared norms of gradients, float32, as a backward pass makes them; none is kept."""
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
