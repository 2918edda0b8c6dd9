"""Rows become tokens: prompt and answer joined by one space, EOS trained, cuts reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mergeforget.data.batches import join, pack, pad
from mergeforget.data.schema import Row
from mergeforget.data.tokens import encode, encode_rows, truncation
from mergeforget.errors import InputError, UsageError
from mergeforget.outputs import ANSWER, PADDING, PROMPT
from mergeforget.train import packing_check
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


def test_a_long_row_is_truncated_at_the_beginning_of_its_prompt(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ROWS[0], max_length=12)
    assert tokenizer.decode(encoded.ids) == "rn? In Lund.<|end|>"[1:] and len(encoded) == 12
    assert encoded.truncated == len(ROWS[0].document) + 1 - 12
    report = truncation([encoded], "forget", 12)
    assert "1 of 1 forget rows" in report and f"by up to {encoded.truncated} tokens" in report


def test_a_long_answer_is_truncated_at_its_end(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ROWS[0], max_length=4)
    assert tokenizer.decode(encoded.ids) == " In " and set(encoded.kinds) == {ANSWER}


def test_a_prompt_limit_leaves_the_remaining_tokens_to_the_answer(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ROWS[0], max_length=9, join="", prompt_tokens=5)
    assert (
        tokenizer.decode(encoded.ids) == "born?In L"
        and encoded.kinds == [PROMPT] * 5 + [ANSWER] * 4
    )
    assert len(encode(tokenizer, ROWS[0], max_length=3, prompt_tokens=5)) == 3


def test_empty_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="without any token"):
        encode(tokenizer, Row("x", "Q", ""), max_length=9, join="")


def test_packed_rows_have_the_predictions_of_single_rows(tiny_folder: Path, tokenizer: Any) -> None:
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


OTHER: dict[str, dict[str, Any]] = {  # in which concatenated rows attend to each other
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mamba": {"state_size": 4},
}
EXPERTS = {"num_local_experts": 4, "num_key_value_heads": 2, "intermediate_size": 64}


def other_model(name: str) -> Any:
    shape = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 2}
    config = AutoConfig.for_model(name, **shape, num_attention_heads=4, **OTHER.get(name, EXPERTS))
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data *= 3  # with the usual small initialisation, rows would be indistinguishable
    return model


@pytest.mark.parametrize("name", OTHER)
def test_rows_with_attention_leakage_are_passed_one_by_one(
    name: str, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = other_model(name)
    encoded = encode_rows(tokenizer, ROWS, max_length=100)
    other = [replace(encoded[0], ids=encoded[0].ids[::-1]), *encoded[1:]]
    with torch.no_grad():
        said, changed = (predict(model, pack(rows), layers=[0]) for rows in (encoded, other))
        alone = [predict(model, pack([one]), layers=[0]) for one in encoded]
        again = predict(model, join([pack(encoded[:2]), pack(encoded[2:])]))
    assert torch.equal(said.sequence_logps(), torch.cat([a.sequence_logps() for a in alone]))
    assert torch.equal(again.sequence_logps(), said.sequence_logps())
    assert torch.equal(said.sequence_logps()[1:], changed.sequence_logps()[1:])
    hidden = [(one.hidden or {})[0] for one in (said, *alone)]
    assert torch.equal(hidden[0], torch.cat(hidden[1:]))
    assert capsys.readouterr().err.count("own forward pass") == 1


def test_a_sharded_model_with_attention_leakage_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_check, "sharded", lambda: True)
    encoded = encode_rows(tokenizer, ROWS, max_length=100)
    with pytest.raises(UsageError, match="OPTForCausalLM .* FSDP"):
        predict(other_model("opt"), pack(encoded))


def test_a_masked_language_model_is_not_trained(tokenizer: Any) -> None:
    """transformers loads BERT as a causal model, with attention to later tokens."""
    shape = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 2}
    config = AutoConfig.for_model("bert", **shape, num_attention_heads=4, intermediate_size=64)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="BertLMHeadModel is not a causal language model"):
        predict(model, pack(encode_rows(tokenizer, ROWS, max_length=100)))
    config.is_decoder = True
    predict(
        AutoModelForCausalLM.from_config(config),
        pack(encode_rows(tokenizer, ROWS[:1], max_length=100)),
    )


def test_rows_without_attention_leakage_share_a_pass(tiny_model: Any, tokenizer: Any) -> None:
    passes = []
    encoded = encode_rows(tokenizer, ROWS, max_length=100)
    predict(tiny_model, pack(encoded))
    tiny_model.register_forward_pre_hook(lambda *_: passes.append(1))
    predict(tiny_model, pack(encoded))
    assert passes == [1] and not packing_check.rows_leak(tiny_model)
    assert not packing_check.rows_leak(
        other_model("mixtral")
    )  # its rounding depends on the other rows


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
