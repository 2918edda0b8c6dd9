"""Drop outliers and small entries, elect a sign, add up the entries that agree."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import Divide, Sign, Vote, consensus
from mergeforget.merge.kernels.sparsify import outliers
from mergeforget.merge.methods import merge_method


@merge_method(
    "breadcrumbs_ties", source="arXiv:2312.06795 with TIES's election; mergekit", whole=True
)
def breadcrumbs_ties(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    gamma: float = 0.01,
    sign: Sign = "total",
    vote: Vote = "weighted",
    divide: Divide = "none",
    scale: float = 1.0,
) -> Tensor:
    """Drop the largest ``gamma`` share, keep the next ``density`` share, elect signs, add up."""
    kept = outliers(stack, density, gamma)
    return consensus(kept, weights, sign=sign, vote=vote, divide=divide, scale=scale)
