"""Merge methods, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@merge_method("<name>",
source=...)``. It takes the stacked tensors of one module, (n, *shape), and one weight for each,
and returns the merged tensor. It is a pure function, on numpy arrays and on torch tensors: space,
device, streaming and files are the engine's. Nothing else needs an edit: the folder is the list.

Keyword-only arguments are what a recipe or the command line may set. The engine supplies those
named in ``SUPPLIED``: ``density``; ``generator`` for a method that draws at random; ``grams``,
(n, in, in), the layer's input statistics, ``importance`` and ``contrast``, gradients per entry, and
``shares``, (n,), learned coefficients, see ``merge.activation_grams``; ``base_weights``, the base's
own tensor, for a method that writes whole models only; ``cuts``, thresholds found on the whole
tensor, for a method that trims and then works entry by entry (a sweep over densities is then fast);
``l1_factors`` for a method that rescales to the L1 norm of the whole tensor.

A method sees a stack in blocks of rows unless it is registered with ``whole=True``, which it needs
where an output entry depends on more than its own row (``cuts`` and ``l1_factors`` aside). A method
of the form ``sum_i c_i x_i``, with c computed from inner products, names the function that computes
them as ``coefficients``; it is then exact on low-rank factors. So is one of the form
``sum_i w_i x_i M_i`` with matrices that ``maps`` computes from the ``grams``, and one that names a
function of the factors themselves as ``factors``. A method that drops at random names the function
that it ``drops`` by, so that norms are known before blocks are rescaled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

from mergeforget.merge.kernels.arrays import Tensor, as_weights, stacked
from mergeforget.registry import Registry

P = ParamSpec("P")
Stack = Tensor | Sequence[Tensor]
Weights = Tensor | Sequence[float]
SUPPLIED = (  # by the engine
    "density", "generator", "grams", "cuts", "l1_factors", "importance", "contrast", "shares",
    "base_weights",
)  # fmt: skip
MERGE_METHODS: Registry[Callable[..., Any]] = Registry(
    "merge method", __name__, "mergeforget.merge_methods"
)


@dataclass(frozen=True)
class Traits:
    """What the engine may do with a method; see the module's docstring.

    Attributes:
        whole: The method must see whole tensors.
        coefficients: (gram (n, n), weights (n,), **arguments) -> (n,).
        base: ``delta`` acts on changes only; ``either`` also on whole weights, without a base.
        maps: (grams (n, in, in), **arguments) -> (n, in, in).
        drops: (stack, density, generator, rescale=..., **arguments) -> stack; None draws nothing.
        factors: (deltas, weights (n,), **arguments) -> (a, b): the merged change ``b @ a`` from
            rank-sized matrices, for a method whose result is of low rank.
        layerwise: The ``grams`` of a layer are measured behind the merged layers before it.
    """

    whole: bool = False
    coefficients: Callable[..., Any] | None = None
    base: str = "delta"
    maps: Callable[..., Any] | None = None
    drops: Callable[..., Any] | None = None
    factors: Callable[..., Any] | None = None
    layerwise: bool = False


_TRAITS: dict[str, Traits] = {}


def merge_method(
    name: str,
    *,
    source: str,
    whole: bool = False,
    coefficients: Callable[..., Any] | None = None,
    base: str = "delta",
    maps: Callable[..., Any] | None = None,
    drops: Callable[..., Any] | None = None,
    factors: Callable[..., Any] | None = None,
    layerwise: bool = False,
) -> Callable[
    [Callable[Concatenate[Tensor, Tensor, P], Tensor]],
    Callable[Concatenate[Stack, Weights, P], Tensor],
]:
    """Decorator that adds a merge method; see the module's docstring.

    The decorated function also accepts a list of tensors and a list of weights.
    """

    def decorate(
        fn: Callable[Concatenate[Tensor, Tensor, P], Tensor],
    ) -> Callable[Concatenate[Stack, Weights, P], Tensor]:
        @functools.wraps(fn)
        def merge(stack: Stack, weights: Weights, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
            whole_stack = stacked(stack)
            return fn(whole_stack, as_weights(weights, whole_stack), *args, **kwargs)

        _TRAITS[name] = Traits(whole, coefficients, base, maps, drops, factors, layerwise)
        return MERGE_METHODS.register(name, source=source)(merge)

    return decorate


def traits(name: str) -> Traits:
    """What the engine may do with a method."""
    MERGE_METHODS.get(name)  # imports it
    return _TRAITS[name]
