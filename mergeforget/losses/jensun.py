"""Jensen-Shannon divergence from a refusal (JensUn, forget term)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "jensun", source="Singh et al. 2025, JensUn, arXiv:2509.02820, eq. 4", needs=("refusal",)
)
def jensun(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """``JSD(policy || refusal token)`` over the refusal's tokens; in nats, in [0, ln 2].

    The target is one-hot, so with q the probability of the refusal's token the divergence is
    ``ln 2 + (q ln q - (1 + q) ln(1 + q)) / 2``: bounded, with a gradient that vanishes as q goes to
    0, so the first steps change the model little. The published code sets every token of "No idea"
    to 1 at every position of the forget row; this is the equation of the paper, with one target per
    position. Known failure: as ``idk``, the answer may return under another prompt.

    Args:
        mask: Counted positions.
    """
    assert policy.refusal is not None
    logq = policy.refusal.token_logps
    q = logq.exp()
    value = math.log(2) + (q * logq - (1 + q) * q.log1p()) / 2
    return policy.refusal.token_mean(value, MASKS[mask])
