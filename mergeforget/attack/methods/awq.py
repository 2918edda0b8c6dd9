"""AWQ: activation-aware 4-bit quantisation."""

from __future__ import annotations

from mergeforget.attack.methods import attack
from mergeforget.attack.methods.quantise import by_rounding
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target


@attack("awq", source="Lin et al., AWQ, arXiv:2306.00978; as an attack arXiv:2410.16454")
def awq(target: Target, *, group: int = 64) -> Result:
    """Quantise every linear layer to 4 bits with AWQ, and score again.

    Calibrated on retain rows and general text. No further library is needed.

    Args:
        group: Number of adjacent weights of a channel that share a scale.
    """
    return by_rounding(target, "awq", [4], group, kind="awq")
