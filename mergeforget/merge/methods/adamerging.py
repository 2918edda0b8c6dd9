"""AdaMerging: weights per module that minimise the entropy of the merged model's predictions."""

from __future__ import annotations

from typing import Any

from mergeforget.merge.kernels.arrays import Tensor, as_weights, like
from mergeforget.merge.kernels.sign_election import weighted_sum
from mergeforget.merge.methods import merge_method


def coefficients(gram: Any, weights: Tensor, *, shares: Tensor, **learning: Any) -> Tensor:
    """Return the factor of each input, (n,); the training arguments are not used here."""
    return weights * like(as_weights(shares, weights), weights)


@merge_method(
    "adamerging",
    source="AdaMerging, arXiv:2310.02575, section 3.2 (layer-wise)",
    coefficients=coefficients,
)
def adamerging(
    stack: Tensor,
    weights: Tensor,
    *,
    shares: Tensor,
    steps: int = 100,
    rate: float = 0.01,
    initial: float = 0.3,
    rows: int = 16,
) -> Tensor:
    """``sum_i w_i s_i x_i`` with coefficients s of each module and input learned without labels.

    Adam minimises the mean entropy of the next-token distributions at the answers of the
    ``--data`` rows; answers are context and never targets. The paper
    uses 500 steps with a rate of 0.001; the defaults here are fewer and larger steps, for CPUs.

    Args:
        shares: s, (n,); measured by the engine, see ``adaptive_weights``.
        steps: Steps of Adam.
        rate: Learning rate.
        initial: Initial coefficient of every module and input.
        rows: Maximum number of rows per file.
    """
    return weighted_sum(stack, weights * like(as_weights(shares, weights), weights))
