"""PerTA: task arithmetic with entries scaled by their importance for forgetting."""

from __future__ import annotations

from typing import Literal

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, like
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method


@merge_method("perta", source="Per-parameter Task Arithmetic, arXiv:2601.22030", whole=True)
def perta(
    stack: Tensor,
    weights: Tensor,
    *,
    importance: Tensor,
    contrast: Tensor,
    estimate: Literal["grad", "fisher"] = "grad",
    scale: float = 1.0,
) -> Tensor:
    """``scale * sum_i w_i x_i * f / (f + r)``, with f and r the importance to forget and retain.

    Entries that matter to the retain rows change less. Give the adapter trained on the forget
    set a negative weight.

    Args:
        importance: f, (1, out, in), of the base on the forget rows.
        contrast: r, the same on the retain rows. Both are measured on ``--data``, the forget file
            first.
        estimate: Definition of f and r: ``grad``, the magnitude of the mean gradient (PerTA-grad),
            or ``fisher``, the mean squared gradient per row (PerTA-fisher).
    """
    if estimate not in ("grad", "fisher"):
        raise UsageError(f"estimate is {estimate!r}; it must be grad or fisher.")
    if importance.shape != contrast.shape:
        raise UsageError("perta needs the importance of forget and retain rows, in equal shapes.")
    forget, retain = like(importance, stack)[0], like(contrast, stack)[0]
    both = forget + retain
    share: Tensor = forget / (both + (both == 0))
    return weighted_sum(stack, weights, scale=scale) * share
