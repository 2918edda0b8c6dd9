"""RegMean: least-squares fit of the merged layer to the outputs of each input on its data."""

from __future__ import annotations

import numpy as np

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, library, like, to_dtype
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method

RIDGE = 1e-9  # relative to the mean square of an input; inputs without data are averaged


def maps(grams: Tensor, *, off_diagonal: float = 0.9) -> Tensor:
    """Return ``M_i = G_i (sum_j G_j)^-1``, (n, in, in) float64; they add up to the identity."""
    if not 0 <= off_diagonal <= 1:
        raise UsageError(f"off_diagonal is {off_diagonal}; it must be in [0, 1].")
    wide, lib = to_dtype(grams, "float64"), library(grams)
    identity = like(np.eye(wide.shape[-1]), wide)
    squares = lib.einsum("nii->ni", wide)  # (n, in)
    ridge = RIDGE * float(squares.mean()) or 1.0
    wide = off_diagonal * wide + ((1 - off_diagonal) * squares + ridge)[:, :, None] * identity
    solved: Tensor = lib.einsum("nij->nji", lib.linalg.solve(wide.sum(0), wide))
    return solved  # the transpose, since both factors are symmetric


@merge_method(
    "regmean", source="RegMean, arXiv:2212.09849, eq. 2 and section 3.3", maps=maps, base="either"
)
def regmean(stack: Tensor, weights: Tensor, *, grams: Tensor, off_diagonal: float = 0.9) -> Tensor:
    """Fit the merged layer to the outputs of each input on its own data, by least squares.

    ``sum_i w_i x_i G_i (sum_j G_j)^-1``, G_i the mean of ``h h^T`` over the layer's inputs h on
    data i, (n, in, in): the least squares solution where every weight is 1. ``off_diagonal``
    shrinks the correlations between inputs, as in the paper.
    """
    found = maps(grams, off_diagonal=off_diagonal)
    mapped = [x @ like(m, stack) for x, m in zip(stack, found, strict=True)]
    return weighted_sum(library(stack).stack(mapped), weights)
