"""Merge methods, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@merge_method("<name>",
source=...)``. It takes the stacked tensors of one module, (n, *shape), and one weight for each,
and returns the merged tensor. It is a pure function, on numpy arrays and on torch tensors: space,
device, streaming and files are the engine's. Nothing else needs an edit: the folder is the list.

Keyword-only arguments are what a recipe or the command line may set. Three are the engine's to
give: ``density``, ``chance`` to a method that draws at random, and ``grams`` to one that looks at
what the layers are given, (n, in, in), see ``merge.grams``.

A method sees a stack in blocks of rows unless it says ``whole=True``: then what it gives at a
place depends on more than the row of that place (and the cuts of ``trim``, and L1 norms, which are
known). A method whose result is ``sum_i c_i x_i`` with numbers c that depend on inner products only
names the function that computes them as ``coefficients``; it is then exact on low-rank factors. So
is one whose result is ``sum_i w_i x_i M_i`` with matrices that ``maps`` gives from the ``grams``. A
method that drops at random says what it ``drops`` by, so that norms are known before blocks are
rescaled. A method that trims and then works place by place says ``trims=True``; a sweep over
densities is then quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mergeforget.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])
MERGE_METHODS: Registry[Callable[..., Any]] = Registry("merge method", __name__)


@dataclass(frozen=True)
class Traits:
    """What the engine may do with a method; see the module's docstring.

    Attributes:
        whole: it must see whole tensors.
        trims: it trims, and what it does then at a place depends on that place alone.
        coefficients: (gram (n, n), weights (n,), **arguments) -> (n,).
        drops: (stack, density, chance, rescale=..., **arguments) -> stack; None draws nothing.
        maps: (grams (n, in, in), **arguments) -> (n, in, in).
        base: ``delta`` acts on changes only; ``either`` also on whole weights, where no base is.
    """

    whole: bool = False
    coefficients: Callable[..., Any] | None = None
    base: str = "delta"
    trims: bool = False
    maps: Callable[..., Any] | None = None
    drops: Callable[..., Any] | None = None


_TRAITS: dict[str, Traits] = {}


def merge_method(
    name: str,
    *,
    source: str,
    whole: bool = False,
    coefficients: Callable[..., Any] | None = None,
    base: str = "delta",
    trims: bool = False,
    maps: Callable[..., Any] | None = None,
    drops: Callable[..., Any] | None = None,
) -> Callable[[F], F]:
    """Decorator that adds a merge method; see the module's docstring."""
    _TRAITS[name] = Traits(whole, coefficients, base, trims, maps, drops)
    return MERGE_METHODS.register(name, source=source)


def traits(name: str) -> Traits:
    """What the engine may do with a method."""
    MERGE_METHODS.get(name)  # imports it
    return _TRAITS[name]
