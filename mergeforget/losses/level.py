"""Move the NLL of forget rows to the NLL of rows that the model never saw."""

from __future__ import annotations

import torch
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs

TINY, MOST = 1e-7, 50.0  # nats, between which log-odds are finite in float32


@unlearning_loss("level", source="mergeforget, docs/unlearn.md", needs=("levels",))
def level(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    tau: float = 3.0,
    offset: float = 0.0,
    known_below: float = 1.0,
    known_weight: float = 10.0,
    even: bool = False,
) -> Tensor:
    """Mean over sequences of ``w_i |NLL_i - (tau_i + offset)|``; a scalar, in nats.

    ``tau_i`` (``policy.levels``) is the NLL of rows like row i that the model never saw. The weight
    ``w_i`` is ``known_weight`` while the NLL is below ``known_below`` nats per token and 1 above:
    the gradient of a memorised answer is close to zero. Unlike NPO or gradient ascent, the loss
    stops at the level instead of passing it.

    With a ``policy.profile`` p, the mean over tokens t of ``w_it |NLL_it - p_it (tau_i + offset)|``
    is used instead, and ``w_it`` is ``known_weight`` for tokens below both ``known_below`` and
    their target. Without it, the mean can reach the level through a few very unlikely tokens (day
    and month) while others (the year) are still known.

    With ``even``, a token below its target that the model knows better than the average token of
    the forget set is moved as strongly as that one. Where it has the larger gradient, the distance
    is ``doubt min(1, d) (o(aim) - o(NLL))`` instead of ``d = aim - NLL``, with the log-odds against
    the token ``o(x) = ln(e^x - 1)`` and ``doubt`` (``policy.doubt``), the mean of ``1 - e^-NLL`` at
    the last check. Otherwise long passages stay memorised next to short answers: the gradient of
    an NLL of 0.001 is a thousand times smaller than that of a forgotten token.

    Args:
        tau: Level of every row, in nats per token, where ``policy.levels`` is None. A training
            with ``until`` measures the levels and sets them.
        offset: Nats above the level to aim at: positive over-forgets, negative under-forgets.
        known_below: NLL per token below which a row counts as memorised.
        known_weight: Weight of such rows.
        even: Move well-known tokens as strongly as average ones.
    """
    nll = policy.nll()  # (rows,)
    levels = torch.full_like(nll, tau) if policy.levels is None else policy.levels.to(nll)
    target = levels + offset
    known = nll.detach() < known_below
    gap = torch.where(known, known_weight, 1.0).to(nll) * (nll - target).abs()
    tokens, aim = -policy.token_logps, target[policy.row]
    low = (known & (nll.detach() < target))[policy.row]
    if policy.profile is not None:
        profile = policy.profile.to(nll)
        profiled = policy.per_row(profile) > 0
        aim = torch.where(profiled[policy.row], profile * aim, aim)
        below = tokens.detach() < aim.clamp(max=known_below)
        low = torch.where(profiled[policy.row], below, low)
        distance = torch.where(below, known_weight, 1.0).to(nll) * (tokens - aim).abs()
        gap = torch.where(profiled, _row_mean(policy, distance), gap)
    if even and policy.doubt > 0:
        more = _evened(tokens, aim, policy.doubt) * low.to(nll)
        gap = gap + known_weight * _row_mean(policy, more)
    return policy.row_mean(gap)


def _row_mean(policy: TokenOutputs, values: Tensor) -> Tensor:
    """Return the mean over the answer tokens of each row, (rows,)."""
    return policy.per_row(values) / policy.counts.to(values)


def _evened(tokens: Tensor, aim: Tensor, doubt: float) -> Tensor:
    """Return what the distance in log-odds adds to that in nats; 0 for less known tokens.

    Args:
        tokens, aim: NLL of each token and its target, (tokens,).
    """
    distance = aim - tokens
    pull = doubt * distance.detach().clamp(0, 1)
    weak = -torch.expm1(-tokens.detach()) < pull
    odds = _log_odds(aim.clamp(min=0)) - _log_odds(tokens)
    return torch.where(weak, pull * odds - distance, 0.0)


def _log_odds(nll: Tensor) -> Tensor:
    """Return the log-odds against tokens; the bounds keep gradients of all of them finite."""
    return torch.expm1(nll.clamp(max=MOST) + TINY).log()
