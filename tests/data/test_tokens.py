"""Rows become tokens: prompt and answer joined by one space, EOS trained, cuts reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mergeforget.data.batches import pack, pad
from mergeforget.data.schema import Row
from mergeforget.data.tokens import encode, encode_rows, truncation
from mergeforget.errors import InputError
from mergeforget.outputs import ANSWER, PADDING, PROMPT
from mergeforget.train.forward import predict

ROWS = [
    Row("a-qa0", "Where was Ada Quill born?", "In Lund."),
    Row("b-qa0", "Who?", "Ada."),
    Row("c-sc1", "Ada Quill was born in Lund and", "moved to Oslo in 1987."),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Any) -> Any:
    return tiny_tokenizer


def test_answer_begins_with_the_space_and_ends_with_eos(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ROWS[0], max_length=100)
    answer = [i for i, k in zip(encoded.ids, encoded.kinds, strict=True) if k == ANSWER]
    assert tokenizer.decode(answer) == " In Lund.<|end|>"
    assert encoded.ids[: -len(answer)] == tokenizer(ROWS[0].input)["input_ids"]


def test_too_long_a_row_loses_the_beginning_of_its_prompt(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ROWS[0], max_length=12)
    assert tokenizer.decode(encoded.ids) == "rn? In Lund.<|end|>"[1:] and len(encoded) == 12
    assert encoded.truncated == len(ROWS[0].document) + 1 - 12
    report = truncation([encoded], "forget", 12)
    assert "1 of 1 forget rows" in report and f"by {encoded.truncated} at most" in report


def test_an_answer_too_long_loses_its_end(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ROWS[0], max_length=4)
    assert tokenizer.decode(encoded.ids) == " In " and set(encoded.kinds) == {ANSWER}


def test_a_prompt_with_its_own_share_leaves_the_answer_the_rest(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ROWS[0], max_length=9, join="", prompt_tokens=5)
    assert (
        tokenizer.decode(encoded.ids) == "born?In L"
        and encoded.kinds == [PROMPT] * 5 + [ANSWER] * 4
    )
    assert len(encode(tokenizer, ROWS[0], max_length=3, prompt_tokens=5)) == 3


def test_empty_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="without any token"):
        encode(tokenizer, Row("x", "Q", ""), max_length=9, join="")


def test_rows_laid_end_to_end_predict_as_if_alone(tiny_folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).double().eval()
    encoded = encode_rows(tokenizer, ROWS, max_length=100)
    with torch.no_grad():
        together = predict(model, pack(encoded))
        alone = [predict(model, pack([one])).sequence_logps() for one in encoded]
        left = predict(model, pad(encoded, (ANSWER,), 0, side="left"))
        right = predict(model, pad(encoded, (ANSWER,), 0, side="right"))
    for other in (torch.cat(alone), left.sequence_logps(), right.sequence_logps()):
        torch.testing.assert_close(
            together.sequence_logps(), other, rtol=0, atol=1e-7
        )  # float32 rotary angles


def test_padded_batch_counts_every_position_when_asked(tokenizer: Any) -> None:
    encoded = encode_rows(tokenizer, ROWS, max_length=100)
    batch = pad(encoded, (PADDING, PROMPT, ANSWER), 0, side="right")
    length = max(len(e) for e in encoded)
    # every place but the first token of a row is predicted, and after each row the padding is
    assert sum(batch.count().values()) == len(ROWS) * length
    assert batch.count()[ANSWER] == sum(e.kinds.count(ANSWER) for e in encoded)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_padded_to_a_length_count_every_position_of_it(tokenizer: Any, side: str) -> None:
    encoded = encode_rows(tokenizer, ROWS[:1], max_length=100)
    batch = pad(encoded, (PADDING, PROMPT, ANSWER), 0, side=side, length=64)
    assert batch.input_ids.shape == (1, 64) and sum(batch.count().values()) == 64
    assert batch.count()[ANSWER] == encoded[0].kinds.count(ANSWER)
