"""Loss adjustment with forget data only (FLAT)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "flat",
    source="Wang et al. 2024, FLAT, arXiv:2410.11143, eq. 4 and table 1",
    needs=("answer", "refusal"),
)
def flat(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    divergence: Literal["kl", "tv", "js", "pearson"] = "kl",
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Maximise an f-divergence between the refusal and the forget answer; a scalar.

    ``-g(P_refusal) + f*(g(P_forget))``, where P is the mean token probability of an answer, g the
    optimal variational function and f* the conjugate of the divergence. It needs neither retain
    data nor a reference model. Known failure: nothing preserves general ability, so the result
    depends on the number of steps.

    Args:
        divergence: The f-divergence: Kullback-Leibler, total variation, Jensen-Shannon or Pearson.
        mask: Counted positions.
    """
    assert policy.refusal is not None
    kinds = MASKS[mask]
    refused, known = _probability(policy.refusal, kinds), _probability(policy, kinds)
    return policy.row_mean(_conjugate(_variational(known, divergence), divergence)) - (
        policy.refusal.row_mean(_variational(refused, divergence))
    )


def _probability(outputs: TokenOutputs, kinds: tuple[int, ...]) -> Tensor:
    """Mean probability of the tokens of each sequence: (rows,)."""
    sums = outputs.per_row(outputs.token_logps.exp(), kinds)
    return sums / outputs.counted(kinds).to(sums.dtype)


def _variational(v: Tensor, divergence: str) -> Tensor:
    if divergence == "tv":
        return torch.tanh(v) / 2
    if divergence == "js":
        return math.log(2) + F.logsigmoid(v)  # log(2 / (1 + exp(-v)))
    return v


def _conjugate(u: Tensor, divergence: str) -> Tensor:
    if divergence == "kl":
        return (u - 1).exp()
    if divergence == "js":
        return -(2 - u.exp()).log()
    if divergence == "pearson":
        return u**2 / 4 + u
    return u
