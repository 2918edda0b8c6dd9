"""Read the NLL of answers, and whether greedy decoding reproduces them, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mergeforget.data.batches import pack
from mergeforget.data.tokens import Encoded
from mergeforget.outputs import ANSWER, TokenOutputs
from mergeforget.train.forward import predict

AT_ONCE = 16  # rows per forward pass


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
    """Yield the predictions of a model in eval mode, for ``AT_ONCE`` rows at a time."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(rows), AT_ONCE):
            yield predict(model, pack(rows[start : start + AT_ONCE]).to(device))
    model.train(was_training)


def answer_ids(row: Encoded) -> list[int]:
    """Return the token ids of a row's answer, except a first token without context."""
    places = zip(row.ids[1:], row.kinds[1:], strict=True)
    return [token for token, kind in places if kind == ANSWER]
