"""Rows that a model cannot read whole: more tokens than it has positions, ids it has no row for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mergeforget.console import say
from mergeforget.errors import InputError

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
SPARE = 8  # rows of a position table beside its positions: OPT has 2, others a padding row
NAMES = re.compile(r"pos|wpe")


def position_limit(model: Any) -> int | None:
    """The largest number of tokens that a model can read; None where nothing limits it.

    Only a table of positions is such a limit: GPT-2 and OPT fail on a longer row. Rotary positions
    and ALiBi go on beyond the length in the configuration, at a loss of quality.

    Args:
        model: a causal language model, with or without an adapter.
    """
    config = model.config.get_text_config(decoder=True)
    length = next((v for n in LENGTHS if isinstance(v := getattr(config, n, None), int)), None)
    if length is None:
        return None
    tables = [*model.named_parameters(), *model.named_buffers()]
    for name, table in tables:
        own = ".".join(name.split(".")[-2:])  # GPT-J's table is a buffer of each layer
        if table.ndim == 2 and NAMES.search(own) and length <= table.shape[0] <= length + SPARE:
            return length
    return None


def cut_to_positions(
    model: Any, texts: Sequence[Sequence[int]], *, reserve: int = 0
) -> tuple[list[list[int]], list[int]]:
    """Cut the beginning of texts that a model cannot read whole, and report how many.

    Args:
        texts: token ids.
        reserve: tokens that the model will add; up to a quarter of its positions are kept free.

    Returns:
        The texts as they fit, and the number of tokens cut from each.
    """
    limit = position_limit(model)
    if limit is None:
        return [list(text) for text in texts], [0] * len(texts)
    room = limit - min(reserve, limit // 4)
    cuts = [max(0, len(text) - room) for text in texts]
    if count := sum(cut > 0 for cut in cuts):
        say(
            f"{count} of {len(texts)} rows are longer than {room} tokens and were cut at the "
            f"beginning, by {max(cuts)} tokens at most: the model has {limit} positions."
        )
    return [list(text[cut:]) for text, cut in zip(texts, cuts, strict=True)], cuts


def check_token_ids(model: Any, texts: Sequence[Sequence[int]]) -> None:
    """Raise InputError for a token id that the model's embedding has no row for."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    for place, text in enumerate(texts):
        largest = max(text, default=0)
        if largest >= rows:
            raise InputError(
                f"Text {place + 1} of {len(texts)} has the token id {largest}, and the model's "
                f"embedding has {rows} rows: its tokenizer belongs to another model, or tokens "
                "were added to it without model.resize_token_embeddings(len(tokenizer)). Save the "
                "model with a fitting tokenizer."
            )
