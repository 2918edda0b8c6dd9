"""Merge methods, one file each.

To add one, write ``<name>.py`` here with a function decorated by
``@merge_method("<name>", source=...)``. It takes the stacked tensors of one module, (n, *shape),
and one weight per tensor, and returns the merged tensor. It is a pure function of numpy arrays or
torch tensors: the engine handles space, device, streaming and files. No other module needs an
edit: the folder is the list.

A recipe or the command line may set the keyword-only arguments. The engine supplies those
in ``SUPPLIED``: ``density``; ``generator`` for random methods; ``grams``,
(n, in, in), the layer's input statistics, ``importance`` and ``contrast``, gradients per entry, and
``shares``, (n,), learned coefficients, see ``merge.activation_grams``; ``base_weights``, the base's
own tensor, for methods that write only whole models; ``cuts``, thresholds of the whole
tensor, for methods that trim and then work entry by entry (which makes sweeps over densities fast);
``l1_factors`` for methods that rescale to the L1 norm of the whole tensor.

A method gets a stack in blocks of rows unless it is registered with ``whole=True``, which is needed
if an output entry depends on other rows (apart from ``cuts`` and ``l1_factors``). A method of the
form ``sum_i c_i x_i``, with c computed from inner products, registers the function for c as
``coefficients``; it is then exact on low-rank factors. The same holds for the form
``sum_i w_i x_i M_i`` with matrices that ``maps`` computes from the ``grams``, and for a method with
a function of the factors as ``factors``. A method with random dropping registers its function as
``drops``, so that norms are known before blocks are rescaled.
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
SUPPLIED = (  # arguments that the engine supplies
    "density", "generator", "grams", "cuts", "l1_factors", "importance", "contrast", "shares",
    "base_weights",
)  # fmt: skip
MERGE_METHODS: Registry[Callable[..., Any]] = Registry(
    "merge method", __name__, "mergeforget.merge_methods"
)


@dataclass(frozen=True)
class Traits:
    """Properties of a method that the engine uses; see the module docstring.

    Attributes:
        whole: The method needs whole tensors.
        coefficients: (gram (n, n), weights (n,), **arguments) -> (n,).
        base: ``delta`` merges only deltas; ``either`` also merges whole weights, without a base.
        maps: (grams (n, in, in), **arguments) -> (n, in, in).
        drops: (stack, density, generator, rescale=..., **arguments) -> stack; None is not random.
        factors: (deltas, weights (n,), **arguments) -> (a, b): the merged delta ``b @ a`` from
            rank-sized matrices, for methods with a low-rank result.
        layerwise: The ``grams`` of a layer are measured after the merged layers before it.
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
    """Return a decorator that registers a merge method; see the module docstring.

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
    """Return the properties of a method that the engine uses."""
    MERGE_METHODS.get(name)  # imports it
    return _TRAITS[name]
