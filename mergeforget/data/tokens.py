"""From a row to tokens: which belong to the prompt, and which to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergeforget.data.schema import Row
from mergeforget.errors import InputError
from mergeforget.outputs import ANSWER, PROMPT


@dataclass(frozen=True)
class Encoded:
    """A row's tokens.

    Attributes:
        ids: token ids, prompt first.
        kinds: PROMPT or ANSWER for each; the end-of-sequence token belongs to the answer.
        row: the row's place in its set.
        truncated: tokens that did not fit.
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
    join: str = " ",
    prompt_tokens: int | None = None,
    whole: bool = False,
) -> Encoded:
    """Tokenise ``input + join + output``, mark the answer, and end it with EOS.

    What does not fit is cut from the beginning of the prompt, since the answer is what is trained;
    of an answer that alone is too long the end is cut, EOS with it. With ``prompt_tokens`` the
    prompt is cut to those, and what still does not fit from the end of the answer, as ZJUKLAB's
    code does.

    Args:
        max_length: tokens kept at most.
        join: what stands between prompt and answer; with a space they are tokenised as one text,
            so that the tokens are those of the running text; with "" each is tokenised by itself,
            as ZJUKLAB's code does.
        prompt_tokens: tokens of the prompt kept at most, counted from its end.
        whole: count every token but the first as answer: the row as a document.

    Raises:
        InputError: the answer has no token.
    """
    prompt, answer = _joined(tokenizer, row, join) if join else _apart(tokenizer, row)
    if not answer:
        raise InputError(f"Row {row.id!r} has an answer without any token: {row.output!r}.")
    answer = [*answer, tokenizer.eos_token_id]
    full = len(prompt) + len(answer)
    if prompt_tokens is None:
        answer = answer[:max_length]
        prompt = prompt[max(0, len(prompt) - (max_length - len(answer))) :]
    else:
        prompt = prompt[-min(prompt_tokens, max_length - 1) :]
        answer = answer[: max_length - len(prompt)]
    kinds = [ANSWER if whole else PROMPT] * len(prompt) + [ANSWER] * len(answer)
    return Encoded(
        prompt + answer, kinds, truncated=full - len(prompt) - len(answer), weight=row.weight
    )


def encode_rows(tokenizer: Any, rows: Sequence[Row], **settings: Any) -> list[Encoded]:
    """``encode`` for every row, with its place."""
    return [
        replace(encode(tokenizer, row, **settings), row=place) for place, row in enumerate(rows)
    ]


def truncation(encoded: Sequence[Encoded], name: str, max_length: int) -> str:
    """One line that reports cut rows, or nothing where every row fits."""
    cut = [e.truncated for e in encoded if e.truncated]
    if not cut:
        return ""
    return (
        f"{len(cut)} of {len(encoded)} {name} rows are longer than {max_length} tokens and were "
        f"cut, by {max(cut)} at most; raise max_length to keep them whole."
    )


def _joined(tokenizer: Any, row: Row, join: str) -> tuple[list[int], list[int]]:
    """Prompt and answer tokens of the running text; a token across the border is the answer's."""
    text = row.input + join + row.output
    encoding = tokenizer(text, return_offsets_mapping=True)
    ends = [end for _, end in encoding["offset_mapping"]]
    border = next((i for i, end in enumerate(ends) if end > len(row.input)), len(ends))
    return list(encoding["input_ids"][:border]), list(encoding["input_ids"][border:])


def _apart(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
    prompt = tokenizer(row.input)["input_ids"]
    return list(prompt), list(tokenizer(row.output, add_special_tokens=False)["input_ids"])
