"""TIES: trim, elect a sign, average the entries that agree."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import Divide, Sign, Vote, consensus
from mergeforget.merge.kernels.sparsify import trim
from mergeforget.merge.kernels.thresholds import Cuts
from mergeforget.merge.methods import merge_method


@merge_method("ties", source="TIES-Merging, arXiv:2306.01708; PEFT; mergekit")
def ties(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float,
    cuts: Cuts | None = None,
    sign: Sign = "total",
    vote: Vote = "unweighted",
    divide: Divide = "count",
    scale: float = 1.0,
) -> Tensor:
    """Keep the largest entries, elect a sign at each position, average the entries that agree.

    The defaults are PEFT's: the sign is elected before weighting, so a weight scales the
    contribution of an adapter but not its vote. mergekit is ``vote=weighted``, ``divide=weights``.
    """
    trimmed = trim(stack, density, cuts)
    return consensus(trimmed, weights, sign=sign, vote=vote, divide=divide, scale=scale)
