"""Logit interpolation of "Who's Harry Potter"."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mergeforget.chunked_logprobs import Contrast, divergence
from mergeforget.losses import unlearning_loss
from mergeforget.outputs import MASKS, TokenOutputs


@unlearning_loss(
    "whp",
    source="Eldan and Russinovich 2023, arXiv:2310.02238, section 2.1; MUSE's code",
    needs=("reference_logits", "reinforced"),
)
def whp(
    policy: TokenOutputs,
    reference: TokenOutputs,
    *,
    alpha: float = 5.0,
    mask: Literal["answer", "tokens"] = "answer",
) -> Tensor:
    """Cross entropy to ``softmax(z_ref - alpha relu(z_reinforced - z_ref))``; in nats.

    The reinforced model is the reference after further training on the forget set (``reinforce``
    in the recipe). Logits that this training raises belong to the forgotten text; lowering them
    gives a generic prediction, which the policy learns. The paper also replaces names by generic
    ones; this loss does not. Known failure: a text that the model has memorised raises no logit
    any more when it is reinforced, so little is removed.

    Args:
        alpha: Multiple of the rise of a logit that is subtracted; 5 in the paper, 1 in MUSE's code.
        mask: Counted positions.
    """
    assert reference.reinforced is not None and reference.source is not None
    assert reference.reinforced.source is not None
    generic = Contrast(reference.source, reference.reinforced.source, alpha)
    assert policy.source is not None
    value, entropy = divergence(policy.source, generic, policy.labels, _generic)
    return policy.token_mean(value + entropy, MASKS[mask])


def _generic(logits: Tensor, generic: Tensor | None, labels: Tensor) -> Tensor:
    assert generic is not None
    return F.log_softmax(generic, -1)
