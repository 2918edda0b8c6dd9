"""Tokenises rows into training examples, truncates long texts, and checks token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import InputError
from mergeforget.outputs import ANSWER, PROMPT

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
SPARE = 8  # maximum number of extra rows in a position table, such as the 2 of OPT
NAMES = re.compile(r"pos|wpe")


@dataclass(frozen=True)
class Encoded:
    """The tokens of a row.

    Attributes:
        ids: Token ids, prompt first.
        kinds: PROMPT or ANSWER for each token; the token that ends the answer is part of it.
        row: Index of the example in its set.
        source: Index of the row that the example is made of, among the rows that were tokenised.
        form: Form of the prompt: 0 for the run's, 1 and more for those that were added, such as
            raw; see ``train/prompt_forms.py``.
        truncated: Number of tokens that were removed.
        weight: Weight of the row; see ``Row``.
        fold: Fold of a forget row, from 0, in layered unlearning; see ``Training``.
    """

    ids: list[int]
    kinds: list[int]
    row: int = 0
    source: int = 0
    form: int = 0
    truncated: int = 0
    weight: float = 1.0
    fold: int = 0

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
    together: bool = False,
    truncate: Literal["prompt", "end"] = "prompt",
) -> Encoded:
    """Tokenise a row's prompt and answer, mark the answer, and append its end token.

    A row that is too long is truncated at the beginning of the prompt, because the answer is what
    is trained. An answer that is too long by itself is truncated at its end, including EOS. With
    ``prompt_tokens``, the prompt is truncated to that number of tokens, and the rest is removed
    from the end of the answer, as in ZJUKLAB's code.

    Args:
        max_length: Maximum number of tokens.
        template: Raw text or a chat template; also determines the token that ends an answer.
        join: Separator between a raw prompt and its answer; see ``PromptTemplate.tokens``.
        prompt_tokens: Maximum number of prompt tokens, counted from the end of the prompt.
        whole: Mark every token except the first as answer, to train the row as a document.
        together: With ``join=""``, tokenise prompt and answer as one text.
        truncate: ``end`` truncates a row that is too long at its end, as in iShumei's code.

    Raises:
        InputError: The answer has no token, or the chat template cannot render the row.
    """
    cut = template.tokens(tokenizer, row, join, together=together)
    if not cut.answer:
        raise InputError(f"Row {row.id!r} has an answer without any token: {row.output!r}.")
    prompt, answer = cut.prompt, [*cut.answer, *cut.end]
    full = len(prompt) + len(answer)
    if truncate == "end":
        prompt = prompt[:max_length]
        answer = answer[: max_length - len(prompt)]
    elif prompt_tokens is None:
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
    """Encode every row, and record its index in the set.

    A document window of more than ``max_length`` tokens becomes several examples with the same
    index. They overlap by an eighth, and every token is trained exactly once.
    """
    examples = []
    for place, row in enumerate(rows):
        one = encode(tokenizer, row, max_length=max_length, **settings)
        parts = [one]
        if row.window and one.truncated:
            free = encode(tokenizer, row, max_length=len(one) + one.truncated, **settings)
            parts = split_long(free, max_length)
        examples += [replace(part, row=place) for part in parts]
    return examples


def split_long(one: Encoded, max_length: int) -> list[Encoded]:
    """Split an example into pieces of at most ``max_length`` tokens that overlap by an eighth.

    The overlap is marked as prompt in the later piece, so that it serves as context only.
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
    """Return a message about truncated rows; empty if every row fits."""
    cut = [e.truncated for e in encoded if e.truncated]
    if not cut:
        return ""
    return (
        f"{len(cut)} of {len(encoded)} {name} rows are longer than {max_length} tokens and were "
        f"truncated by up to {max(cut)} tokens; raise max_length to keep them complete."
    )


LONGEST = 32_768  # tokens of an evaluated row, for a model without a table of positions


def position_limit(model: Any) -> int | None:
    """Return the maximum number of tokens that a model can process; None if unlimited.

    Only a table of position embeddings is a limit: GPT-2 and OPT fail on longer rows. Rotary
    positions and ALiBi work beyond the length in the configuration, with a loss of quality.

    Args:
        model: A causal language model, with or without an adapter.
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


def fitting_length(model: Any, longest: int) -> int:
    """Return the number of tokens of a row that a model can process, at most ``longest``."""
    return min(longest, position_limit(model) or longest)


def cut_to_positions(
    model: Any, texts: Sequence[Sequence[int]], *, reserve: int = 0
) -> tuple[list[list[int]], list[int]]:
    """Truncate texts at the beginning to the model's positions, and report how many were cut.

    A model without a limit evaluates at most 32,768 tokens of a row: its cost is quadratic.

    Args:
        texts: Token ids.
        reserve: Number of tokens to be generated; up to a quarter of the positions is kept free.

    Returns:
        The truncated texts, and the number of tokens removed from each.
    """
    limit = position_limit(model)
    room = LONGEST if limit is None else limit - min(reserve, limit // 4)
    cuts = [max(0, len(text) - room) for text in texts]
    if count := sum(cut > 0 for cut in cuts):
        say(
            f"{count} of {len(texts)} rows are longer than {room} tokens and were truncated at the "
            f"beginning by up to {max(cuts)} tokens: "
            + (f"the model has {limit} positions." if limit else "longer rows are not evaluated.")
        )
    return [list(text[cut:]) for text, cut in zip(texts, cuts, strict=True)], cuts


def check_token_ids(model: Any, texts: Sequence[Sequence[int]]) -> None:
    """Raise InputError for a token id outside the model's embedding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    for place, text in enumerate(texts):
        largest = max(text, default=0)
        if largest >= rows:
            raise InputError(
                f"Text {place + 1} of {len(texts)} has the token id {largest}, and the model's "
                f"embedding has {rows} rows: the tokenizer belongs to another model, or tokens "
                "were added to it without model.resize_token_embeddings(len(tokenizer)). Save the "
                "model with a matching tokenizer."
            )
