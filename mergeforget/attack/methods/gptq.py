"""GPTQ: calibrated 4-bit quantisation, column by column."""

from __future__ import annotations

from mergeforget.attack.methods import attack
from mergeforget.attack.methods.quantise import by_rounding
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target


@attack("gptq", source="Frantar et al., GPTQ, arXiv:2210.17323; as an attack arXiv:2410.16454")
def gptq(target: Target, *, group: int = 64) -> Result:
    """Quantise every linear layer to 4 bits with GPTQ, and score again.

    Calibrated on retain rows and general text. No further library is needed.

    Args:
        group: Number of adjacent weights of a channel that share a scale.
    """
    return by_rounding(target, "gptq", [4], group, kind="gptq")
