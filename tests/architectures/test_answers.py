"""Batched answers, likelihoods and MMLU choices of every architecture are those of single rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_models import FAST, MLA, REFUSED, SLOW, build

from mergeforget.errors import InputError
from mergeforget.evaluate.decoding import full_pass, model_generate, uncached
from mergeforget.evaluate.generate import generate_ids
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.evaluate.mmlu import choose
from mergeforget.evaluate.self_check import safe_modes

STOP = list(range(2, 259, 9))  # so that rows end at different steps
NEW = 12
NO_GENERATE = ("xlstm", "bailing_hybrid")  # where transformers' own generate raises
DRAW = random.Random(1)
PROMPTS = [[DRAW.randrange(5, 250) for _ in range(n)] for n in (3, 17, 9, 17, 40)]
ALL = FAST | SLOW
DISAGREES = ("roberta",)  # as a decoder; refused, see below
EVERY = [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW if n not in DISAGREES)]


def alone(model: Any, name: str) -> list[list[int]]:
    """New tokens of each prompt, a row at a time."""
    if name in NO_GENERATE:
        return [uncached(model, prompt, STOP, NEW) for prompt in PROMPTS]
    return [model_generate(model, prompt, STOP, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("name", EVERY)
def test_batched_answers_equal_those_of_single_rows(name: str) -> None:
    model = build(name, **ALL[name])
    expected = alone(model, name)
    assert len(set(map(tuple, expected))) > 3, "the random model answers every prompt alike"
    assert generate_ids(model, PROMPTS, stop=STOP, max_new_tokens=NEW) == expected
    assert generate_ids(model, PROMPTS, stop=STOP, max_new_tokens=NEW, batch_tokens=1) == expected

    single = likelihoods(model, PROMPTS, batch_tokens=1)
    for ours, theirs in zip(likelihoods(model, PROMPTS), single, strict=True):
        assert ours.nll == pytest.approx(theirs.nll, abs=1e-4)
        assert (ours.greedy == theirs.greedy).all()

    asked = [[7, 8, 9] * 4 + prompt for prompt in PROMPTS]  # a common prefix, longer than WINDOW
    letters = [20, 30, 40, 50]
    assert choose(model, asked, letters, None) == choose(model, asked, letters, 1)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_depends_on_later_tokens_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match="is not a causal language model"):
        generate_ids(build(name), PROMPTS, stop=STOP, max_new_tokens=2)
    with pytest.raises(InputError, match="is not a causal language model"):
        likelihoods(build(name), PROMPTS)


def test_a_model_whose_generate_disagrees_with_its_forward_pass_is_refused() -> None:
    model = build("roberta", is_decoder=True)  # generate counts positions from 0, forward from 1
    with pytest.raises(InputError, match="disagree"):
        generate_ids(model, PROMPTS, stop=STOP, max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("llama", "padded"), ("mamba", "equal"), ("openai-gpt", "generate"), ("rwkv", "generate"),
     *(pytest.param(n, "", marks=pytest.mark.slow) for n in ALL if n not in DISAGREES)],
)  # fmt: skip
def test_a_slower_mode_is_used_only_if_needed_and_in_half_precision_as_in_float32(
    name: str, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(name, **ALL[name])
    found = safe_modes(model)
    assert found.rows == (rows or found.rows)
    reported = capsys.readouterr().err
    assert ("slower" in reported) == (found.rows != "padded" or not found.scored_together)
    model.bfloat16()
    before = {n: p.clone() for n, p in model.named_parameters()}
    assert safe_modes(model) == found  # a fault of 2 % is below the rounding of half precision
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


SPARSE = {"index_n_heads": 2, "index_head_dim": 8}


@pytest.mark.parametrize(("blocks", "rows"), [(1, "equal"), (32, "generate")])
def test_sparse_attention_that_short_probes_never_reach_gets_right_answers(
    blocks: int, rows: str
) -> None:
    settings = ALL["minimax_m3_vl_text"] | {"index_block_size": 16, "index_topk_blocks": blocks}
    model = build("minimax_m3_vl_text", **settings)
    long = [[*prompt, *PROMPTS[4], *PROMPTS[3]] for prompt in PROMPTS]
    assert safe_modes(model).rows == rows
    expected = alone(model, "minimax_m3_vl_text")
    assert generate_ids(model, PROMPTS, stop=STOP, max_new_tokens=NEW) == expected
    expected = [model_generate(model, prompt, STOP, NEW) for prompt in long]
    assert generate_ids(model, long, stop=STOP, max_new_tokens=NEW) == expected


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
def test_sparse_attention_whose_generate_disagrees_is_refused(name: str) -> None:
    model = build(name, **MLA, **SPARSE, index_topk=30)
    with pytest.raises(InputError, match="disagree"):
        likelihoods(model, PROMPTS)


HALVES = ("llama", "gpt2", "qwen3", "gemma3_text", "mamba", "mixtral", "gpt_neox", "gpt_oss")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if i > 1 else ()) for i, n in enumerate(HALVES)]
)
def test_bfloat16_batches_differ_from_single_rows_in_near_ties_only(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(name, **ALL[name]).bfloat16()
    exact = build(name, **ALL[name])
    exact.load_state_dict(model.state_dict())  # the same weights, in float32
    batched = generate_ids(model, PROMPTS, stop=STOP, max_new_tokens=NEW)
    way = safe_modes(model)
    assert ("slower" in capsys.readouterr().err) == (way.rows != "padded")
    single, same = alone(model, name), 0
    assert len(set(map(tuple, single))) > 3
    for prompt, ours, theirs in zip(PROMPTS, batched, single, strict=True):
        pairs = enumerate(zip(ours, theirs, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), None)
        if first is None:
            same += ours == theirs
            continue
        ids = torch.tensor([prompt + ours[:first]])
        logits = full_pass(exact, ids)[0, -1]
        noise = (full_pass(model, ids)[0, -1].float() - logits).abs().max()
        assert (logits[ours[first]] - logits[theirs[first]]).abs() <= 2 * noise
    assert same >= 3
    rounded = [one.nll for one in likelihoods(model, PROMPTS)]
    assert rounded == pytest.approx([one.nll for one in likelihoods(exact, PROMPTS)], rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["ignores the mask", "mixes up rows", "ignores the cache",
                                   "adds an error of 3 %"])  # fmt: skip
def test_an_unknown_model_with_a_fault_gets_single_row_answers_or_is_refused(
    fault: str, dtype: torch.dtype
) -> None:
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM.forward

    class Faulty(LlamaForCausalLM):
        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            use_cache: Any = None,
            **more: Any,
        ) -> Any:
            more |= {"attention_mask": attention_mask, "position_ids": position_ids}
            more |= {"past_key_values": past_key_values, "use_cache": use_cache}
            if fault == "ignores the cache":
                more = {"use_cache": False}
            elif fault == "ignores the mask":
                more |= {"attention_mask": None, "position_ids": None}
            elif past_key_values is not None and input_ids.shape[0] > 1 and "rows" in fault:
                input_ids = input_ids.roll(1, 0)
            found = plain(self, input_ids=input_ids, **more)
            if input_ids.shape[0] > 1 and "error" in fault:
                size = found.logits.std(-1, keepdim=True) * found.logits.shape[-1] ** 0.5
                found.logits[..., :1] += 0.03 * size
            return found

    model = build("llama", tie_word_embeddings=False).to(dtype)
    faulty = Faulty(model.config).eval().to(dtype)
    faulty.load_state_dict(model.state_dict())
    if fault == "ignores the cache":  # model.generate then gets the last token only
        with pytest.raises(InputError, match="disagree"):
            generate_ids(faulty, PROMPTS, stop=STOP, max_new_tokens=NEW)
        return
    found = generate_ids(faulty, PROMPTS, stop=STOP, max_new_tokens=NEW)
    assert found == alone(model, "llama")
    assert not safe_modes(faulty).scored_together or fault in ("ignores the mask", "mixes up rows")
