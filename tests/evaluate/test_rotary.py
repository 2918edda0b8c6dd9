"""Scores of a row do not depend on other rows if rotary frequencies depend on the length."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from mergeforget.evaluate.batching import original_length
from mergeforget.evaluate.generate import generate_ids
from mergeforget.evaluate.likelihood import likelihoods

SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LENGTHS = (28, 30, 32, 40, 44, 44)  # the frequencies depend on the length above 32


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0,
                            "original_max_position_embeddings": 32}  # fmt: skip
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0, 2, 4, 6, 8, 10, 12, 16]}
        model: Any = Phi3ForCausalLM(Phi3Config(
            **SHAPE, max_position_embeddings=256, original_max_position_embeddings=32,
            rope_parameters=rope, pad_token_id=0,
        ))  # fmt: skip
    else:
        rope |= {"factor": 4.0}
        model = LlamaForCausalLM(
            LlamaConfig(**SHAPE, max_position_embeddings=32, rope_parameters=rope)
        )
    for p in model.parameters():
        p.data *= 3  # so that positions matter
    return model.eval()


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_are_measured_as_if_they_were_alone(kind: str) -> None:
    model = model_of(kind)
    assert original_length(model) == (32, kind)
    draw = random.Random(0)
    texts = [[draw.randrange(5, 300) for _ in range(length)] for length in LENGTHS]
    fresh = copy.deepcopy(model)
    together = likelihoods(model, texts)
    answers = generate_ids(model, texts, stop=[2], max_new_tokens=10)
    for text, found, answer in zip(texts, together, answers, strict=True):
        alone = copy.deepcopy(fresh)
        with torch.no_grad():
            logps = alone(torch.tensor([text]), use_cache=False).logits[0].log_softmax(-1)
        nll = -logps[:-1].gather(1, torch.tensor(text[1:])[:, None]).mean()
        assert found.nll == pytest.approx(float(nll), abs=1e-4)
        alone = copy.deepcopy(fresh)
        expected = alone.generate(
            torch.tensor([text]), max_new_tokens=10, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        assert answer == expected[0, len(text) :].tolist()


def test_other_models_have_no_such_length() -> None:
    assert original_length(LlamaForCausalLM(LlamaConfig(**SHAPE))) is None
