"""From a row to a training example: token ids, which of them are the answer, and what was cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import InputError
from mergeforget.outputs import ANSWER, PROMPT

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
SPARE = 8  # rows of a position table beside its positions: OPT has 2, others a padding row
NAMES = re.compile(r"pos|wpe")


@dataclass(frozen=True)
class Encoded:
    """A row's tokens.

    Attributes:
        ids: token ids, prompt first.
        kinds: PROMPT or ANSWER for each; the token that ends the answer belongs to it.
        row: the row's place in its set.
        truncated: number of tokens that did not fit.
        weight: how much the row counts; see Row.
    """

    ids: list[int]
    kinds: list[int]
    row: int = 0
    truncated: int = 0
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    tokenizer: Any,
    row: Row,
    *,
    max_length: int,
    template: PromptTemplate = RAW,
    join: str = " ",
    prompt_tokens: int | None = None,
    whole: bool = False,
) -> Encoded:
    """Tokenise a row's prompt and answer, mark the answer, and append what ends it.

    A row that does not fit is cut at the beginning of the prompt, since the answer is what is
    trained. An answer that is too long by itself is cut at its end, and EOS with it. With
    ``prompt_tokens`` the prompt is cut to that many tokens and the rest is cut from the end of the
    answer, as ZJUKLAB's code does.

    Args:
        max_length: largest number of tokens.
        template: raw text or a chat template; it also decides which token ends an answer.
        join: separator between a raw prompt and its answer; see ``PromptTemplate.tokens``.
        prompt_tokens: largest number of tokens of the prompt, counted from its end.
        whole: mark every token but the first as answer: the row is trained as a document.

    Raises:
        InputError: the answer has no token, or the chat template cannot render the row.
    """
    cut = template.tokens(tokenizer, row, join)
    if not cut.answer:
        raise InputError(f"Row {row.id!r} has an answer without any token: {row.output!r}.")
    prompt, answer = cut.prompt, [*cut.answer, *cut.end]
    full = len(prompt) + len(answer)
    if prompt_tokens is None:
        answer = answer[:max_length]
        prompt = prompt[max(0, len(prompt) - (max_length - len(answer))) :]
    else:
        prompt = prompt[-min(prompt_tokens, max_length - 1) :]
        answer = answer[: max_length - len(prompt)]
    every = whole or row.opens
    kinds = [ANSWER if every else PROMPT] * len(prompt) + [ANSWER] * len(answer)
    return Encoded(
        prompt + answer, kinds, truncated=full - len(prompt) - len(answer), weight=row.weight
    )


def encode_rows(
    tokenizer: Any, rows: Sequence[Row], *, max_length: int, **settings: Any
) -> list[Encoded]:
    """``encode`` for every row, with its place in the set.

    A window of a document that is longer than ``max_length`` tokens becomes several examples with
    the same place. They overlap by an eighth, and every token is trained exactly once.
    """
    found = []
    for place, row in enumerate(rows):
        one = encode(tokenizer, row, max_length=max_length, **settings)
        parts = [one]
        if row.window and one.truncated:
            free = encode(tokenizer, row, max_length=len(one) + one.truncated, **settings)
            parts = split_long(free, max_length)
        found += [replace(part, row=place) for part in parts]
    return found


def split_long(one: Encoded, max_length: int) -> list[Encoded]:
    """Cut an example into pieces of at most ``max_length`` tokens that overlap by an eighth.

    The overlap is marked as prompt in the later piece, so that it gives context only.
    """
    overlap = min(max_length // 8, max_length - 1)
    pieces = [replace(one, ids=one.ids[:max_length], kinds=one.kinds[:max_length], truncated=0)]
    end = max_length
    while end < len(one):
        start = end - overlap
        stop = min(start + max_length, len(one))
        kinds = [PROMPT] * overlap + one.kinds[end:stop]
        pieces.append(replace(one, ids=one.ids[start:stop], kinds=kinds, truncated=0))
        end = stop
    return pieces


def truncation(encoded: Sequence[Encoded], name: str, max_length: int) -> str:
    """One line that reports cut rows; empty where every row fits."""
    cut = [e.truncated for e in encoded if e.truncated]
    if not cut:
        return ""
    return (
        f"{len(cut)} of {len(encoded)} {name} rows are longer than {max_length} tokens and were "
        f"cut, by {max(cut)} at most; raise max_length to keep them whole."
    )


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
