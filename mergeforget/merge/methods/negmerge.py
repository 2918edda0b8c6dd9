"""NegMerge: keep the entries on whose sign all deltas agree."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method


@merge_method("negmerge", source="NegMerge, arXiv:2410.05583, section 3.2")
def negmerge(stack: Tensor, weights: Tensor) -> Tensor:
    """Average the weighted entries where all deltas have the same sign; zero elsewhere.

    Intended for forgetting by negation: give negative weights to deltas trained on the forget set.
    """
    unanimous: Tensor = (stack > 0).all(0) | (stack < 0).all(0)
    return weighted_sum(stack, weights) * unanimous / len(stack)
