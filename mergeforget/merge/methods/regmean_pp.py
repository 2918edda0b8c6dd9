"""RegMean with the inputs that each layer gets from the merged layers before it."""

from __future__ import annotations

from mergeforget.merge.kernels.arrays import Tensor
from mergeforget.merge.methods import merge_method
from mergeforget.merge.methods.regmean import maps, regmean


@merge_method(
    "regmean_pp",
    source="RegMean++, arXiv:2508.03121, section 3",
    maps=maps,
    base="either",
    layerwise=True,
)
def regmean_pp(
    stack: Tensor, weights: Tensor, *, grams: Tensor, off_diagonal: float = 0.9
) -> Tensor:
    """``regmean`` whose input statistics come from the merged model instead of each input's own.

    The layers are merged one after the other. The inputs of layer l on data i are what layer l of
    model i computes from the output of the merged layers before it, so that the statistics
    describe what the merged model will meet. One pass over the data per layer and input.
    """
    merged: Tensor = regmean(stack, weights, grams=grams, off_diagonal=off_diagonal)
    return merged
