"""Cross entropy on the retain set (GDR)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("gd", source="Liu et al. 2022, arXiv:2203.12817; Maini et al. 2024")
def gd(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    reduction: Literal["tokens", "rows", "batch_mean"] = "tokens",
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Mean negative log-likelihood; a scalar, in nats.

    Args:
        reduction: ``tokens`` is the mean over all tokens, in which a long answer counts more.
            ``rows`` is the mean over rows of each row's own mean. ``batch_mean`` is the mean over
            micro-batches of the token mean of each (ZJUKLAB's code, arXiv:2503.21088).
        mask: Counted positions; ``tokens`` trains the prompt as well (iShumei's code).
    """
    kinds = MASKS[mask]
    if reduction == "rows":
        return policy.row_mean(policy.nll(kinds))
    if reduction == "batch_mean":
        return -policy.share * policy.batch_mean(policy.token_logps, kinds)
    return policy.token_mean(-policy.token_logps, kinds)
