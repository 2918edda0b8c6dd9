"""The square of the effective unlearning loss (GI^2)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.losses.eul import interfere
from mergeforget.outputs import TokenOutputs


@unlearning_loss("eul2", source="Sun and Li 2025, arXiv:2507.16263, section 5.2.5")
def eul2(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    alpha: float = 1.0,
    floor: float = 0.01,
    reduction: Literal["batch", "rows"] = "batch",
) -> Tensor:
    """``(alpha / NLL) ** 2``; its authors found it worse than ``eul``. Arguments as there."""
    return interfere(policy, alpha, floor, reduction, power=2)
