"""Negative response: learn to refuse."""

from __future__ import annotations

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("idk", source="Maini et al. 2024, arXiv:2401.06121, section 4", needs=("refusal",))
def idk(policy: TokenOutputs, reference: TokenOutputs | None = None) -> Tensor:
    """Mean negative log-likelihood of a refusal to each forget prompt; a scalar, in nats."""
    assert policy.refusal is not None
    return policy.refusal.token_mean(-policy.refusal.token_logps)
