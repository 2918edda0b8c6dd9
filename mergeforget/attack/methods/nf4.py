"""NF4: quantisation to the 4-bit type of QLoRA and bitsandbytes."""

from __future__ import annotations

from mergeforget.attack.methods import attack
from mergeforget.attack.methods.quantise import by_rounding
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target


@attack("nf4", source="Dettmers et al., QLoRA, arXiv:2305.14314; as an attack arXiv:2410.16454")
def nf4(target: Target, *, group: int = 64) -> Result:
    """Quantise every weight matrix to 4-bit NormalFloat, as bitsandbytes does, and score again.

    Args:
        group: Number of adjacent weights that share a scale.
    """
    return by_rounding(target, "nf4", [4], group, kind="nf4")
