"""Negative response (NR): learn to refuse."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss("idk", source="Maini et al. 2024, arXiv:2401.06121, section 4", needs=("refusal",))
def idk(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Mean negative log-likelihood of a refusal to each forget prompt; a scalar, in nats.

    Known failure: the model learns when to refuse but still knows the answer; a prefix or a
    paraphrase of the question recovers it.

    Args:
        mask: Counted positions.
    """
    assert policy.refusal is not None
    return policy.refusal.token_mean(-policy.refusal.token_logps, MASKS[mask])
