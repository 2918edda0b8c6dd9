"""Sampling: many answers per prompt at temperature 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mergeforget.attack.asking import Texts, judged, without_given
from mergeforget.attack.guessing import as_rows
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Facts, Target, TargetModel
from mergeforget.attack.variants import Variant
from mergeforget.console import track
from mergeforget.data.tokens import cut_to_positions, position_limit
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.decoding import finite_logits, plain_generation
from mergeforget.evaluate.generate import stop_ids, text_stop_ids
from mergeforget.metrics._leaks import common_windows, leaked


@attack(
    "sampling",
    source="Reisizadeh et al., Leak@k: Unlearning Does Not Make LLMs Forget Under Probabilistic "
    "Decoding, arXiv:2511.04934",
    strength={"samples": "more"},
)
def sampling(target: Target, *, samples: int = 32, temperature: float = 1.0) -> Result:
    """Sample answers to each prompt and report leak@k for k = 1, 2, 4, ... samples.

    Args:
        samples: Number of answers per prompt.
        temperature: Temperature of the softmax, without top-k and top-p.
    """
    target.need("forget")
    asked = without_given([Variant(r, "sampled", r.input, r.output) for r in target.forget],
                          "sampling")  # fmt: skip
    completions = {
        m.role: _samples(target, m, asked, samples, temperature) for m in target.measured_models()
    }
    settings = {"samples": samples, "temperature": temperature, "seed": target.seed,
                "max_new_tokens": target.max_new_tokens}  # fmt: skip
    result = judged(target, "sampling", asked, completions, settings, draws=samples,
                    what=f"{samples} samples of each answer")  # fmt: skip
    common = common_windows([r.document for r in (*target.retain, *target.holdout)])
    sizes = [2**i for i in range(samples.bit_length()) if 2**i < samples] + [samples]
    rows = [
        {"model": role, "kind": f"leak@{k}", "rows": len(asked), "rows_leaked": hit,
         "row_leak_rate": hit / len(asked)}
        for role, texts in completions.items()
        for k in sizes
        if (hit := sum(any(leaked(v.secret, t, v.text, common) for t in texts_of_prompt[:k])
                       for v, texts_of_prompt in zip(asked, texts, strict=True))) >= 0
    ]  # fmt: skip
    return replace(result, rows=rows)


def _samples(
    target: Target,
    target_model: TargetModel,
    asked: list[Variant],
    samples: int,
    temperature: float,
) -> Texts:
    """Return the samples of one model by prompt; reproducible for a seed."""

    def work(model: Any, tokenizer: Any) -> Facts:
        own = target.template(tokenizer)
        stop, text_stops = (find(model, tokenizer, own) for find in (stop_ids, text_stop_ids))
        ids, _ = cut_to_positions(model, [v.tokens(tokenizer, own)[0] for v in asked],
                                  reserve=target.max_new_tokens)  # fmt: skip
        written = []
        for place in track(range(len(ids)), f"{target_model.role}: samples", len(ids)):
            new = sample(model, ids[place], samples, target.max_new_tokens, stop,
                         temperature, seed=target.seed * 100_003 + place)  # fmt: skip
            secret = asked[place].secret
            written.append(
                [Completion.of(n, stop, text_stops).text(tokenizer, [secret]) for n in new]
            )
        return {"samples": written}

    settings = {"samples": samples, "temperature": temperature, "seed": target.seed,
                "max_new_tokens": target.max_new_tokens}  # fmt: skip
    return list(
        target.measured(target_model, "sampling", settings, as_rows(asked), work)["samples"]
    )


@torch.inference_mode()
def sample(
    model: Any,
    prompt: list[int],
    n: int,
    max_new_tokens: int,
    stop: list[int],
    temperature: float,
    *,
    seed: int,
) -> list[list[int]]:
    """Draw ``n`` continuations of one prompt from the model's full distribution.

    All rows have the same prompt, so no padding is needed and every architecture is supported. As
    in greedy decoding, a prompt that is too long for the model's positions is truncated at its
    beginning, and the continuation ends with the last position.

    Returns:
        New token ids of each sample.

    Raises:
        NumericError: The outputs of the model are not finite.
    """
    (prompt,), _ = cut_to_positions(model, [prompt], reserve=max_new_tokens)
    limit = position_limit(model)
    new_tokens = max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt))
    ids = torch.tensor([prompt] * n, device=model.device)
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        with plain_generation(
            model, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
            max_new_tokens=new_tokens, eos_token_id=stop or None,
        ):  # fmt: skip
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=finite_logits()
            )
    model.train(was_training)
    return [_until(row, stop) for row in out[:, len(prompt) :].tolist()]


def _until(row: list[int], stop: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in stop), len(row))
    return row[:end]
