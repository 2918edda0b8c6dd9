"""EMR-Merging: one unified delta, optionally with the mask and rescaling of one task."""

from __future__ import annotations

from mergeforget.errors import UsageError
from mergeforget.merge.kernels.arrays import Tensor, column
from mergeforget.merge.kernels.sign_election import total
from mergeforget.merge.methods import merge_method

ABSENT = -1  # ``task`` in a module that this input lacks


@merge_method("emr", source="EMR-Merging, arXiv:2405.17461, section 3.2", whole=True)
def emr(stack: Tensor, weights: Tensor, *, task: int | None = None) -> Tensor:
    """Elect a sign at each position and keep the largest magnitude that has it.

    Args:
        task: Index of an input whose modulator is applied: entries of the other sign are masked,
            and the rest is rescaled to the input's mean magnitude. None gives the unified change
            of all tasks. -1 is an input without a delta for this module, which masks everything.
    """
    if task == ABSENT:
        nothing: Tensor = stack[0] * 0
        return nothing
    if task is not None and not 0 <= task < len(stack):
        raise UsageError(f"task is {task}; it is the index of one of {len(stack)} inputs.")
    weighted = stack * column(weights, stack)
    summed = total(weighted)
    up = summed > 0
    largest = abs(weighted[0]) * 0
    for entries in weighted:
        size = abs(entries) * (((entries > 0) & up) | ((entries < 0) & ~up))
        larger = size > largest
        largest = size * larger + largest * ~larger
    unified: Tensor = largest * up - largest * ~up
    if task is None:
        return unified
    masked: Tensor = unified * (weighted[task] * unified > 0)
    norm = float(abs(masked).sum())
    scale = float(abs(weighted[task]).sum()) / norm if norm > 0 else 1.0
    return masked * scale
