"""Let the deltas compete for each parameter, drop the losers, average the rest."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor, column, library
from mergeforget.merge.kernels.sign_election import total
from mergeforget.merge.kernels.thresholds import check_density, find_cuts, kept_by, kept_count
from mergeforget.merge.methods import merge_method


@merge_method("pcb", source="PCB-Merging, arXiv:2410.02396, section 3.2", whole=True)
def pcb(stack: Tensor, weights: Tensor, *, density: float) -> Tensor:
    """Weigh each entry by its importance in its own delta and by its agreement with the others.

    The score of entry x_i is ``softmax(n norm(x_i^2)) * sum_j softmax(norm(x_i x_j))``, with
    ``norm`` scaling a delta's scores to [0, 1] and the softmax taken within the delta. The
    fraction ``density`` with the highest scores is kept, and the result is
    ``sum_i s_i w_i x_i / sum_i s_i`` over the scores s that were kept.
    """
    check_density(density)
    lib, n = library(stack), len(stack)
    flat = stack.reshape(n, -1)
    k = kept_count(density, flat.shape[1])
    scores: Tensor = lib.empty_like(flat)
    for i, entries in enumerate(flat):
        alone = _softmax(n * _unit(entries * entries))
        beside = total(lib.stack([_softmax(_unit(entries * other)) for other in flat]))
        score = alone * beside * flat.shape[1]  # of order 1: float32 keeps products of shares
        scores[i] = score * kept_by(score, find_cuts(score, [k])[0], 0)
    shares = total(scores)
    merged: Tensor = total(scores * flat * column(weights, flat)) / (shares + (shares == 0))
    return merged.reshape(stack.shape[1:])


def _unit(x: Tensor) -> Tensor:
    """Scaled to [0, 1]."""
    low, high = float(library(x).amin(x)), float(library(x).amax(x))
    return (x - low) / ((high - low) or 1.0)


def _softmax(x: Tensor) -> Tensor:
    powers = library(x).exp(x)
    shares: Tensor = powers / powers.sum()
    return shares
