"""Alternate preference optimisation (AltPO)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.losses.dpo import dpo
from mergeforget.outputs import TokenOutputs


@unlearning_loss(
    "altpo",
    source="Mekala et al. 2024, AltPO, arXiv:2409.13474; its code: molereddy/"
    "Alternate-Preference-Optimization",
    needs=("answer", "alternate", "reference"),
)
def altpo(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    beta: float = 0.1,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Prefer a plausible wrong answer to the forget answer, relative to the reference; in nats.

    The loss of ``dpo`` with an alternate answer to the same question in place of a refusal:
    ``-(2 / beta) mean log sigmoid(beta (r(alternate) - r(answer)))``. The alternates come from
    ``train.alternates``, or from the model itself before the training. Known failure: the model
    states the alternate as a fact.

    Args:
        beta: Larger values keep the policy nearer to the reference.
        mask: Counted positions.
    """
    return dpo(policy, reference, beta=beta, mask=mask)
