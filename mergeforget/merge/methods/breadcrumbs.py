"""Drop outliers and small entries, then add up."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.kernels.sparsify import outliers
from mergeforget.merge.methods import merge_method


@merge_method("breadcrumbs", source="Model Breadcrumbs, arXiv:2312.06795; mergekit", whole=True)
def breadcrumbs(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    gamma: float = 0.01,
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Drop the largest ``gamma`` share, keep the next ``density`` share, add up."""
    kept = outliers(stack, density, gamma)
    return weighted_sum(kept, weights, normalize=normalize, scale=scale)
