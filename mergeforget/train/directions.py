"""Pure functions for update directions from gradients, and for fitted learning rates.

A gradient is a list of tensors, one per trained parameter. Norms and inner products are computed
over all parameters in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Gradient = Sequence[Tensor]


@dataclass(frozen=True)
class RateFit:
    """Result of fitting the learning rate.

    Attributes:
        rate: The rate to use.
        fitted: The minimum of the parabola; NaN if it has none.
        curvature: Curvature of the parabola, in loss per squared rate.
        accepted: Whether ``rate`` is the fitted one.
    """

    rate: float
    fitted: float
    curvature: float
    accepted: bool


def inner(one: Gradient, other: Gradient) -> float:
    """Return the inner product over all parameters."""
    pairs = zip(one, other, strict=True)
    return float(sum((a.double() * b.double()).sum() for a, b in pairs))


def norm(gradient: Gradient) -> float:
    """Return the Euclidean norm over all parameters."""
    return math.sqrt(inner(gradient, gradient))


def ngdiff(retain: Gradient, forget: Gradient) -> list[Tensor]:
    """Return ``g_R / ||g_R|| - g_F / ||g_F||``, the normalised difference of both gradients.

    A step against it lowers the retain loss and raises the forget loss.

    Both are gradients of an NLL. The forget term of a recipe is ``ga``, which is -NLL, so the
    caller negates its gradient. Then ``g_R . g >= 0 >= g_F . g``: to first order a step never
    raises the retain loss and never lowers the forget loss. A gradient of norm 0 adds nothing.

    Source: Bu et al. 2024, arXiv:2410.22086, eq. 7.
    """
    r, f = norm(retain), norm(forget)
    keep, lose = (1 / r if r else 0.0), (1 / f if f else 0.0)
    return [a * keep - b * lose for a, b in zip(retain, forget, strict=True)]


def rectified(objective: Gradient, retain: Gradient) -> list[Tensor]:
    """Return the gradient of the objective without the component that raises the retain loss.

    If ``<objective, retain> < 0``, a descent step along ``objective`` would raise the retain loss;
    the projection ``objective - <objective, retain> / ||retain||^2 retain`` removes that component.
    Otherwise the gradient is returned unchanged.

    Source: Wang et al. 2025, GRU, arXiv:2503.09117, eq. 7.

    Example:
        >>> import torch
        >>> rectified([torch.tensor([1.0, -1.0])], [torch.tensor([0.0, 2.0])])
        [tensor([1., 0.])]
    """
    conflict, squared_norm = inner(objective, retain), inner(retain, retain)
    if conflict >= 0 or not squared_norm:
        return list(objective)
    factor = conflict / squared_norm
    return [g - factor * r for g, r in zip(objective, retain, strict=True)]


def along(gradient: Gradient, distance: float) -> list[Tensor]:
    """Return the vector of length ``distance`` in the direction of a gradient; 0 if that is 0."""
    length = norm(gradient)
    return [g * (distance / length if length else 0.0) for g in gradient]


def norm_penalised(here: Gradient, ahead: Gradient, radius: float, penalty: float) -> list[Tensor]:
    """Return the gradient of ``L + penalty ||grad L||``, from two gradients of L.

    ``g + penalty (g(theta + radius g / ||g||) - g) / radius``: the gradient of the norm is
    ``H g / ||g||``, whose product with the Hessian is a finite difference, exact up to O(radius).

    Args:
        here, ahead: Gradient of L at ``theta`` and at ``theta + radius g / ||g||``.

    Source: the gradient penalty of Fan et al. 2025, arXiv:2502.05374, section 4; the finite
        difference is that of Zhao et al. 2022, arXiv:2202.03599, eq. 6.

    Example:
        >>> import torch
        >>> here, ahead = [torch.tensor([3.0, 4.0])], [torch.tensor([3.5, 4.0])]
        >>> norm_penalised(here, ahead, radius=0.5, penalty=2.0)
        [tensor([5., 4.])]
    """
    factor = penalty / radius
    return [g + factor * (a - g) for g, a in zip(here, ahead, strict=True)]


def curvature_penalised(
    here: Gradient,
    ahead: Gradient,
    here_bent: Gradient,
    ahead_bent: Gradient,
    radius: float,
    penalty: float,
) -> list[Tensor]:
    """Return the gradient of ``L + penalty ||d||``, ``d = g(theta + v) - g(theta)``, v constant.

    ``v = radius g / ||g||``. The gradient of the norm is ``(H(theta + v) - H(theta)) d / ||d||``, H
    the Hessian of L. Both products are finite differences, exact up to O(radius).

    Args:
        here, ahead: Gradient of L at ``theta`` and at ``theta + v``.
        here_bent, ahead_bent: The same, each moved on by ``radius d / ||d||``.

    Source: the curvature regularisation of Fan et al. 2025, arXiv:2502.05374, section 4, after
        Moosavi-Dezfooli et al. 2019, arXiv:1811.09716.

    Example:
        >>> import torch
        >>> one = torch.tensor([1.0, 0.0])
        >>> curvature_penalised([one], [2 * one], [2 * one], [5 * one], radius=1.0, penalty=0.5)
        [tensor([2., 0.])]
    """
    factor = penalty / radius
    parts = zip(here, ahead, here_bent, ahead_bent, strict=True)
    return [g + factor * ((far - a) - (near - g)) for g, a, near, far in parts]


def clipped(gradient: Gradient, most: float) -> list[Tensor]:
    """Return the gradient, scaled down to norm ``most`` if its norm is larger."""
    length = norm(gradient)
    factor = most / length if length > most else 1.0
    return [g * factor for g in gradient]


def probed_rate(rate: float, ahead: float, here: float, behind: float) -> RateFit:
    """Return the rate that minimises the parabola through three retain losses.

    ``rate (L- - L+) / (2 (L+ - 2 L0 + L-))``; unchanged if the curvature or the fitted rate is not
    positive.

    Args:
        rate: Distance of the probes; the current rate.
        ahead, here, behind: L+ at ``theta - rate g``, L0 at ``theta``, L- at ``theta + rate g``.

    Source: Bu et al. 2024, arXiv:2410.22086, AutoLR. As printed, its algorithm has the opposite
        sign; this is the minimum of ``L_R(theta - eta g)``, ``g_R . g / g' H_R g``.
    """
    bend = ahead - 2 * here + behind
    curvature = bend / rate**2
    fitted = rate * (behind - ahead) / (2 * bend) if bend else math.nan
    good = bend > 0 and fitted > 0 and math.isfinite(fitted)
    return RateFit(fitted if good else rate, fitted, curvature, good)


def fitted_rate(retain: Gradient, step: Gradient, candidates: Sequence[float]) -> RateFit:
    """Return the rate that minimises ``||g_R - eta g||^2``, a parabola in the rate.

    The loss is a parabola in eta, ``||g_R||^2 - 2 eta g_R . g + eta^2 ||g||^2``, so a fit through
    any three candidates finds its minimum ``g_R . g / ||g||^2``. The closed form is used because a
    least-squares solver rounds differently from run to run, and a resumed training would diverge.
    If the minimum is not at a positive rate, the smallest candidate is returned.

    Source: JU-CSE-NLP at SemEval-2025 Task 4, eq. 9 to 11; it does not cover a minimum at a
        negative rate.
    """
    product, squared_norm = inner(retain, step), inner(step, step)
    fitted = product / squared_norm if squared_norm else math.nan
    usable = squared_norm > 0 and fitted > 0
    return RateFit(fitted if usable else float(min(candidates)), fitted, 2 * squared_norm, usable)
