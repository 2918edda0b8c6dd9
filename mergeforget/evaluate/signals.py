"""Membership signals of one document; larger means more likely a member."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from mergeforget.evaluate.likelihood import TokenLikelihoods

SHARES = (20, 40)  # percent of the tokens, the lowest, that min-k reads


def membership_signals(one: TokenLikelihoods, text: str) -> dict[str, float]:
    """``loss``, ``zlib``, ``min_k_20``, ``min_k_plus_20``, ... of a document.

    Source: loss: arXiv:1709.01604; zlib: arXiv:2012.07805; min-k%: arXiv:2310.16789;
        min-k%++: arXiv:2404.02936.
    """
    if not len(one.logps):
        return {}
    deviation = np.maximum(one.deviation, 1e-6)  # a vocabulary of one certain token has none
    standardised = (one.logps - one.mean) / deviation
    found = {"loss": -one.nll, "zlib": -one.nll / len(zlib.compress(text.encode()))}
    for share in SHARES:
        found[f"min_k_{share}"] = lowest_mean(one.logps, share)
        found[f"min_k_plus_{share}"] = lowest_mean(standardised, share)
    return found


def lowest_mean(values: NDArray[np.float64], percent: int) -> float:
    """Mean of the lowest ``percent`` of the values, at least one of them."""
    k = max(1, len(values) * percent // 100)
    return float(np.partition(values, k - 1)[:k].mean())
