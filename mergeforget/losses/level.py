"""Move the NLL of forget rows to the NLL of rows that the model never saw."""

from __future__ import annotations

import torch
from torch import Tensor

from mergeforget.losses import unlearning_loss
from mergeforget.outputs import TokenOutputs


@unlearning_loss("level", source="mergeforget, docs/unlearn.md", needs=("levels",))
def level(
    policy: TokenOutputs,
    reference: TokenOutputs | None = None,
    *,
    tau: float = 3.0,
    offset: float = 0.0,
    known_below: float = 1.0,
    known_weight: float = 10.0,
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

    Args:
        tau: Level of every row, in nats per token, where ``policy.levels`` is None. A training
            with ``until`` measures the levels and sets them.
        offset: Nats above the level to aim at: positive over-forgets, negative under-forgets.
        known_below: NLL per token below which a row counts as memorised.
        known_weight: Weight of such rows.
    """
    nll = policy.nll()  # (rows,)
    levels = torch.full_like(nll, tau) if policy.levels is None else policy.levels.to(nll)
    target = levels + offset
    known = nll.detach() < known_below
    gap = torch.where(known, known_weight, 1.0).to(nll) * (nll - target).abs()
    if policy.profile is not None:
        profile, tokens = policy.profile.to(nll), -policy.token_logps
        aim = profile * target[policy.row]
        low = tokens.detach() < aim.clamp(max=known_below)
        distance = torch.where(low, known_weight, 1.0).to(nll) * (tokens - aim).abs()
        by_token = policy.per_row(distance) / policy.counts.to(nll)
        gap = torch.where(policy.per_row(profile) > 0, by_token, gap)
    return policy.row_mean(gap)
