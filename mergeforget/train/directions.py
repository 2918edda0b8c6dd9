"""Directions made of two gradients, and the rate at which to follow them: pure functions.

A gradient is a list of tensors, one for each trained parameter; norms and inner products run over
all of them at once, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Sequence[Tensor]


@dataclass(frozen=True)
class RateFit:
    """What a fit of the learning rate found.

    Attributes:
        rate: the rate to go on with.
        fitted: the minimum of the parabola, NaN where it has none.
        curvature: of the parabola, loss per squared rate.
        accepted: whether ``rate`` is the fitted one.
    """

    rate: float
    fitted: float
    curvature: float
    accepted: bool


def inner(one: Gradient, other: Gradient) -> float:
    """Inner product over all parameters."""
    pairs = zip(one, other, strict=True)
    return float(sum((a.double() * b.double()).sum() for a, b in pairs))


def norm(gradient: Gradient) -> float:
    """Euclidean norm over all parameters."""
    return math.sqrt(inner(gradient, gradient))


def ngdiff(retain: Gradient, forget: Gradient) -> list[Tensor]:
    """``g_R / ||g_R|| - g_F / ||g_F||``: descend it to keep the one and lose the other.

    Both losses are likelihoods (NLL), as the gradients of ``gd`` on either set. Then
    ``g_R . g >= 0 >= g_F . g``: to first order a step never raises the retain loss and never
    lowers the forget loss. A gradient of norm 0 adds nothing.

    Source: Bu et al. 2024, arXiv:2410.22086, eq. 7.
    """
    r, f = norm(retain), norm(forget)
    keep, lose = (1 / r if r else 0.0), (1 / f if f else 0.0)
    return [a * keep - b * lose for a, b in zip(retain, forget, strict=True)]


def clipped(gradient: Gradient, most: float) -> list[Tensor]:
    """The gradient, scaled down to a norm of ``most`` where it is longer."""
    length = norm(gradient)
    factor = most / length if length > most else 1.0
    return [g * factor for g in gradient]


def probed_rate(rate: float, ahead: float, here: float, behind: float) -> RateFit:
    """The rate that minimises the parabola through three retain losses.

    ``rate (L- - L+) / (2 (L+ - 2 L0 + L-))``; kept as it is where the curvature or the fitted rate
    is not positive.

    Args:
        rate: how far the probes are, the current rate.
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
    """The rate that minimises ``||g_R - eta g||^2``, by a parabola through candidate rates.

    The loss is a parabola in eta, so the fit finds its minimum ``g_R . g / ||g||^2`` whatever three
    candidates are given. The smallest candidate where it has no minimum, or not at a positive rate.

    Source: JU-CSE-NLP at SemEval-2025 Task 4, eq. 9 to 11; it does not say what to do with a
        minimum at a negative rate.
    """
    square, mixed, own = inner(retain, retain), inner(retain, step), inner(step, step)
    rates = torch.tensor(sorted(candidates), dtype=torch.float64)
    losses = square - 2 * rates * mixed + rates**2 * own
    scale = float(rates.max())  # rates of 1e-4 would make the squares vanish beside the ones
    powers = torch.stack([(rates / scale) ** 2, rates / scale, torch.ones_like(rates)], 1)
    a, b, _ = torch.linalg.lstsq(powers, losses).solution.tolist()
    fitted = -b / (2 * a) * scale if a else math.nan
    good = a > 0 and fitted > 0
    return RateFit(fitted if good else float(rates[0]), fitted, 2 * a / scale**2, good)
