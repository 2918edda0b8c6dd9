"""RegMean++: RegMean with inputs from the merged layers before each layer."""

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
    """``regmean`` with input statistics of the merged model instead of each input's own model.

    Layers are merged in order. The inputs of layer l on data i are computed by
    the merged layers before it and layer l of model i, so the statistics
    match the inputs of the merged model. This takes one pass over the data per layer and input.
    """
    merged: Tensor = regmean(stack, weights, grams=grams, off_diagonal=off_diagonal)
    return merged
