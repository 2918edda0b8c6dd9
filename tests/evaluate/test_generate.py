"""Batched generation and likelihoods equal those of a row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mergeforget.attack.methods.probe import hidden_states
from mergeforget.attack.methods.sampling import sample
from mergeforget.errors import NumericError, ResourceError
from mergeforget.evaluate import decoding as module
from mergeforget.evaluate import likelihood
from mergeforget.evaluate.batching import by_length, run_halving
from mergeforget.evaluate.decoding import (
    check_finite,
    greedy,
    greedy_refilled,
    model_generate,
    similar_lengths,
    uncached,
)
from mergeforget.evaluate.generate import generate, generate_ids
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.evaluate.mmlu import choose
from mergeforget.evaluate.self_check import safe_modes
from mergeforget.evaluate.static_decoding import greedy_static

PROMPTS = ["a", "What is it?", "The quick brown fox", "x" * 40, "ab", "What is it?"]


def one_by_one(model: Any, tokenizer: Any, prompt: str, new: int) -> str:
    """As the task's script does it."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(
        **inputs, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=2
    )
    return str(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture
def ending_model(make_model: Any) -> Any:
    """A model of random weights, large enough to wander, that ends texts at every ninth token."""
    model = make_model(seed=3)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(40)
            layer.mlp.down_proj.weight.mul_(40)
    model.generation_config.eos_token_id = list(range(2, 259, 9))
    return model


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_batches_generate_the_texts_of_single_rows(
    ending_model: Any, tiny_tokenizer: Any, batch_tokens: int
) -> None:
    ours = generate(
        ending_model, tiny_tokenizer, PROMPTS, max_new_tokens=20, batch_tokens=batch_tokens
    )
    assert ours == [one_by_one(ending_model, tiny_tokenizer, p, 20) for p in PROMPTS]


@pytest.mark.parametrize("at_once", [1, 2, 6, 30])
def test_waiting_prompts_take_the_places_of_finished_rows(
    ending_model: Any, tiny_tokenizer: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six answers one has 20 tokens and the others 3, so batches are mostly empty."""
    texts = sorted((f"{text} {i}" for i in range(4) for text in PROMPTS), key=len, reverse=True)
    ids = [tiny_tokenizer(text)["input_ids"] for text in texts]
    lengths = [20 if i % 6 == 0 else 3 for i in range(len(ids))]
    sizes: list[int] = []
    forward = ending_model.forward

    def counted(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    def ends_from(first: int) -> Any:
        counts = [0] * len(ids)

        def pick(logits: Any, rows: list[int]) -> Any:
            chosen = logits[:, 3:].argmax(-1) + 3
            for place, row in enumerate(rows):
                counts[first + row] += 1
                if counts[first + row] == lengths[first + row]:
                    chosen[place] = 2
            return chosen

        return pick

    monkeypatch.setattr(ending_model, "forward", counted)
    wanted: list[list[int]] = []
    for first in range(0, len(ids), at_once):
        part = ids[first : first + at_once]
        wanted += greedy(ending_model, part, [2], 25, pick=ends_from(first))
    assert [len(one) for one in wanted] == lengths
    one_after_the_other, sizes[:] = len(sizes), []
    found = greedy_refilled(ending_model, ids, [2], 25, at_once, pick=ends_from(0))
    assert found == wanted
    assert max(sizes) <= at_once
    passes = len(sizes), one_after_the_other
    assert passes[0] < 0.7 * passes[1] if at_once == 6 else passes[0] <= passes[1], passes
    assert greedy_refilled(ending_model, ids, [2], 0, at_once) == [[] for _ in ids]


def test_finished_rows_leave_the_batch(
    ending_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [tiny_tokenizer(p)["input_ids"] for p in PROMPTS]
    ends = ending_model.generation_config.eos_token_id
    sizes = []
    forward = ending_model.forward

    def counted(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    plain = greedy(ending_model, ids, ends, 20)
    monkeypatch.setattr(module, "takes", lambda m, name: name != "logits_to_keep")
    monkeypatch.setattr(ending_model, "forward", counted)
    assert greedy(ending_model, ids, ends, 20) == plain
    lengths = [len(new) for new in plain]
    assert len(set(lengths)) > 1, "the fixture no longer makes rows of different lengths"
    # 40 tokens | 19, 11 and 11 | 2 and 1: prompts of similar length are processed together
    assert sizes == [1, 3, 2] + [
        sum(length >= step for length in lengths) for step in range(2, max(lengths) + 1)
    ]


def test_prompts_of_similar_length_are_prefilled_together() -> None:
    assert similar_lengths([5, 100, 76, 74, 20, 7]) == [[1, 2], [3], [4, 5, 0]]
    assert similar_lengths([3]) == [[0]]


def test_a_model_with_another_kind_of_cache_is_prefilled_in_one_group(
    ending_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [tiny_tokenizer(p)["input_ids"] for p in PROMPTS]
    ends = ending_model.generation_config.eos_token_id
    plain = greedy(ending_model, ids, ends, 20)
    monkeypatch.setattr(module, "has_plain_cache", lambda _: False)
    assert greedy(ending_model, ids, ends, 20) == plain
    assert greedy(ending_model, ids, ends, 0) == [[] for _ in ids]


def test_an_active_adapter_is_applied(tiny_model: Any, tiny_tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    before = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=8)
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1.0)
    after = generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8)
    assert after != before
    assert after == [one_by_one(model.eval(), tiny_tokenizer, p, 8) for p in PROMPTS]
    with model.disable_adapter():
        assert generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8) == before


def test_the_training_mode_is_restored(tiny_model: Any) -> None:
    tiny_model.train()
    generate_ids(tiny_model, [[5, 6]], stop=[2], max_new_tokens=2)
    assert tiny_model.training


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_likelihoods_equal_the_models_own_loss(tiny_model: Any, batch_tokens: int) -> None:
    texts = [[5, 6, 7], [9] * 20, [5, 6, 7], [30, 40, 50, 60, 70]]
    read = likelihoods(tiny_model, texts, batch_tokens=batch_tokens)
    for ids, one in zip(texts, read, strict=True):
        inputs = torch.tensor([ids])
        with torch.no_grad():
            out = tiny_model(input_ids=inputs, labels=inputs)
        assert one.nll == pytest.approx(out.loss.item(), abs=1e-5)
        assert one.greedy.tolist() == (out.logits[0, :-1].argmax(-1) == inputs[0, 1:]).tolist()
        logps = out.logits[0, :-1].double().log_softmax(-1)
        mean = (logps.exp() * logps).sum(-1)
        deviation = ((logps - mean[:, None]).square() * logps.exp()).sum(-1).sqrt()
        assert one.mean == pytest.approx(mean.numpy(), abs=1e-5)
        assert one.deviation == pytest.approx(deviation.numpy(), abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_likelihoods_after_a_start_equal_those_of_the_whole_text(
    tiny_model: Any, batch_tokens: int
) -> None:
    texts = [[5, 6, 7], [9] * 20, [8], [30, 40, 50, 60, 70], [3, 4]]
    starts = [2, 15, 0, 4, 2]  # the last start index is the end of the text
    whole = likelihoods(tiny_model, texts, batch_tokens=batch_tokens)
    for start, one, ours in zip(
        starts,
        whole,
        likelihoods(tiny_model, texts, starts=starts, batch_tokens=batch_tokens),
        strict=True,
    ):
        assert len(ours.logps) == len(one.after(start).logps)
        for name in ("logps", "greedy", "mean", "deviation"):
            wanted = getattr(one.after(start), name)
            assert getattr(ours, name) == pytest.approx(wanted, abs=1e-5)
            assert getattr(ours.after(start + 1), name) == pytest.approx(wanted[1:], abs=1e-5)


def test_unscored_tokens_skip_the_output_layer(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe_modes(tiny_model)
    places = []
    head = tiny_model.lm_head.forward

    def counting(states: torch.Tensor) -> Any:
        places.append(states.shape[1])
        return head(states)

    monkeypatch.setattr(tiny_model.lm_head, "forward", counting)
    likelihoods(tiny_model, [[9] * 20, [8] * 20], starts=[15, 18])
    assert places == [6]  # 14 to 19


def test_a_text_of_one_token_has_no_predicted_token(tiny_model: Any) -> None:
    single, other = likelihoods(tiny_model, [[5], [5, 6]])
    assert len(single.logps) == 0 and single.nll == 0 and len(other.logps) == 1
    (alone,) = likelihoods(tiny_model, [[5]])
    assert len(alone.logps) == 0


def test_batches_have_similar_lengths_and_stay_within_the_budget() -> None:
    lengths = [3, 50, 4, 60, 5, 200]
    groups = by_length(lengths, 120)
    assert sorted(sum(groups, [])) == list(range(6))
    assert groups == [[5], [3, 1], [4, 2, 0]]
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 120


def test_batches_of_likelihoods_contain_little_padding(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [2 + (17 * i) % 59 for i in range(59)]  # 2 to 60
    texts = [[5 + i % 9] * length for i, length in enumerate(lengths)]
    sizes = []
    plain = module.full_pass

    def counted(model: Any, ids: Any, **more: Any) -> Any:
        sizes.append(ids.numel())
        return plain(model, ids, **more)

    monkeypatch.setattr(likelihood, "full_pass", counted)
    found = likelihoods(tiny_model, texts, batch_tokens=10**6)
    assert len(sizes) == 4 and sum(sizes) < 1.3 * sum(lengths)  # one batch: 1.9 times
    monkeypatch.undo()
    for text, one in zip(texts[:3], found, strict=False):
        np.testing.assert_allclose(one.logps, likelihoods(tiny_model, [text])[0].logps, atol=1e-5)


def test_running_out_of_memory_halves_the_batch() -> None:
    tried = []

    def work(places: list[int]) -> list[int]:
        tried.append(list(places))
        if len(places) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return [10 * p for p in places]

    assert list(run_halving([4, 3, 2, 1, 0], work, "cpu")) == [
        (4, 40), (3, 30), (2, 20), (1, 10), (0, 0)]  # fmt: skip
    assert tried == [[4, 3, 2, 1, 0], [4, 3], [2, 1, 0], [2], [1, 0]]


def test_a_single_row_that_does_not_fit_is_a_resource_error() -> None:
    def work(places: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(ResourceError, match="single row"):
        list(run_halving([0, 1], work, "cpu"))


def test_other_errors_are_not_treated_as_out_of_memory() -> None:
    def work(places: list[int]) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(run_halving([0, 1], work, "cpu"))


def test_a_config_with_several_end_tokens_is_accepted(make_model: Any, tiny_tokenizer: Any) -> None:
    model = make_model()
    model.config.eos_token_id = [2, 100]  # as in Llama 3.1 and Gemma 3
    texts = generate(model, tiny_tokenizer, PROMPTS[:2], max_new_tokens=4, label="")
    assert texts == generate(make_model(), tiny_tokenizer, PROMPTS[:2], max_new_tokens=4, label="")


def broken(model: Any, value: float) -> Any:
    """A model with one weight of NaN or Inf."""
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_way_to_decode_completes_a_prompt_with_nan(make_model: Any, value: float) -> None:
    prompts = [[5, 6, 7], [5, 6, 8, 9]]
    ways: list[Callable[[Any], Any]] = [
        lambda model: generate_ids(model, prompts, stop=[2], max_new_tokens=3),
        lambda model: greedy(model, prompts, [2], 3),
        lambda model: greedy_refilled(model, prompts, [2], 3, 1),
        lambda model: greedy_static(model, prompts, [2], 3),
        lambda model: uncached(model, prompts[0], [2], 3),
        lambda model: model_generate(model, prompts[0], [2], 3),
        lambda model: sample(model, prompts[0], 2, 3, [2], 1.0, seed=0),
        lambda model: choose(model, prompts, [10, 11, 12, 13], None),
    ]
    for way in ways:
        assert way(make_model())
        with pytest.raises(NumericError, match="contain NaN"):
            way(broken(make_model(), value))


def test_logits_of_excluded_tokens_may_be_infinite() -> None:
    nan, inf = float("nan"), float("inf")
    check_finite(torch.tensor([[0.0, -inf], [-inf, 1.0]]))
    for wrong in ([0.0, nan], [0.0, inf], [-inf, -inf]):
        with pytest.raises(NumericError):
            check_finite(torch.tensor([[0.0, 1.0], wrong]))


def test_a_probe_of_nan_is_refused(make_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(NumericError, match="not numbers"):
        hidden_states(broken(make_model(), float("nan")), tiny_tokenizer, ["a", "b"], "last")


def test_a_model_of_nan_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    from mergeforget.data.schema import Row
    from mergeforget.evaluate.measure import measure

    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    rows = [Row("r-sc1", "a", "b", split="forget")]
    with pytest.raises(NumericError, match="not a number"):
        measure(
            tiny_model, tiny_tokenizer, forget=rows, retain=[], members=rows, nonmembers=[],
            max_new_tokens=2,
        )  # fmt: skip
