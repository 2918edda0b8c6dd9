"""Rotary positions whose frequencies depend on the length of the text: LongRoPE and dynamic NTK.

Transformers computes the frequencies of such a model for the longest row of a batch, so a row's
outputs would depend on the other rows, and with dynamic NTK also on earlier batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DEPENDENT = ("longrope", "dynamic")


def original_length(model: Any) -> tuple[int, str] | None:
    """Return the length up to which the frequencies are constant, and the type; None if always.

    Args:
        model: A causal language model, with or without an adapter.
    """
    config = model.config.get_text_config(decoder=True)
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_layer = [v for v in found.values() if isinstance(v, dict)] if isinstance(found, dict) else []
    limits = []
    for one in by_layer or ([found] if isinstance(found, dict) else []):
        kind = next((k for k in DEPENDENT if k in str(one.get("rope_type", one.get("type")))), None)
        length = (
            one.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", None)
            or getattr(config, "max_position_embeddings", None)
        )
        if kind is not None and length:
            limits.append((int(length), kind))
    return min(limits, default=None)


def alike(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Group the indices of rows that have the same rotary frequencies in a forward pass.

    Args:
        lengths: Number of tokens of each row.
    """
    limit = original_length(model)
    if limit is None:
        return [list(range(len(lengths)))]
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        beyond = length if limit[1] == "dynamic" else 1
        groups.setdefault(beyond if length > limit[0] else 0, []).append(place)
    return list(groups.values())


def crosses(model: Any, length: int, new_tokens: int) -> bool:
    """Return whether the frequencies may change while a model continues a prompt.

    Args:
        length: Number of tokens of the prompt.
        new_tokens: Maximum number of new tokens.
    """
    limit = original_length(model)
    if limit is None or length + new_tokens <= limit[0]:
        return False
    return limit[1] == "dynamic" or length <= limit[0]


def forget_lengths(model: Any) -> None:
    """Make the next forward pass compute the frequencies for its own length."""
    if original_length(model) is None:
        return
    for module in model.modules():
        for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)
