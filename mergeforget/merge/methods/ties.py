"""Trim, elect a sign, average what agrees."""

from __future__ import annotations

from mergeforget.merge.methods import merge_method
from mergeforget.merge.ops import Sign, Tensor, disjoint_mean, elect, trim


@merge_method("ties", source="TIES-Merging, arXiv:2306.01708; PEFT's order of the steps")
def ties(stack: Tensor, weights: Tensor, *, density: float, sign: Sign = "total") -> Tensor:
    """Keep the largest entries, elect a sign at each place, average the entries that have it.

    The sign is elected before weighting, as PEFT does: a weight changes how much an adapter adds,
    not which sign wins.
    """
    trimmed = trim(stack, density)
    return disjoint_mean(trimmed, weights, elect(trimmed, sign))
