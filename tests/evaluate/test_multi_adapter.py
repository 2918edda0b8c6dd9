"""Several adapters answer in one batch what each answers alone on the merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.errors import ResourceError
from mergeforget.evaluate import generate as module
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.generate import adapters_per_batch, generate, generate_together
from mergeforget.merge.apply import applied

PROMPTS = ["a", "What is it?", "The quick brown fox", "x" * 40, "ab"]
NEW = 16


def wandering(model: Any) -> Any:
    """Random weights, large enough to wander; texts end at every ninth token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight")):
                parameter.mul_(40)
    model.generation_config.eos_token_id = list(range(2, 259, 9))
    return model.eval()


def gpt2() -> Any:
    """Stores its weights as (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4))


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, make_model: Any) -> Any:
    return wandering(gpt2() if request.param == "gpt2" else make_model(seed=3))


def adapter(model: Any, seed: int, rank: int) -> Adapter:
    """Of two modules of each layer, large enough that each adapter writes something else."""
    draw, deltas = np.random.default_rng(seed), {}
    transposed = model.config.model_type == "gpt2"
    for name, inner in model.named_modules():
        if name.endswith(("q_proj", "up_proj", "attn.c_attn", "mlp.c_fc")):
            rows, columns = inner.weight.shape[::-1] if transposed else inner.weight.shape
            a = draw.standard_normal((rank, columns)).astype(np.float32)
            b = draw.standard_normal((rows, rank)).astype(np.float32)
            deltas[name] = LowRankDelta(a, b, 0.05)
    return Adapter(f"adapter {seed}", deltas, {"fan_in_fan_out": transposed})


def one_after_the_other(model: Any, tokenizer: Any, adapters: list[Adapter]) -> list[list[str]]:
    texts = []
    for change in adapters:
        with applied(model, change):
            texts.append(generate(model, tokenizer, PROMPTS, max_new_tokens=NEW))
    return texts


def four(model: Any) -> list[Adapter]:
    """Return three adapters of different ranks, and one that changes nothing."""
    changes = [adapter(model, seed, rank) for seed, rank in enumerate((2, 7, 4))]
    return [*changes, Adapter("base", {}, {})]


@pytest.mark.parametrize("batch_tokens", [1, 150, 10_000])
def test_batched_adapters_give_the_answers_of_separate_ones(
    model: Any, tiny_tokenizer: Any, batch_tokens: int
) -> None:
    adapters = four(model)
    wanted = one_after_the_other(model, tiny_tokenizer, adapters)
    lengths = {len(text) for texts in wanted for text in texts}
    assert len(lengths) > 3 and wanted[0] != wanted[1] != wanted[2], "the fixture writes alike"
    told: dict[tuple[int, int], Completion] = {}
    found = generate_together(
        model, tiny_tokenizer, adapters, [PROMPTS] * 4, max_new_tokens=NEW,
        batch_tokens=batch_tokens, on_done=lambda i, j, one: told.update({(i, j): one}),
    )  # fmt: skip
    assert found == wanted
    texts = {place: one.text(tiny_tokenizer) for place, one in told.items()}
    assert texts == {(i, j): wanted[i][j] for i in range(4) for j in range(5)}


def test_adapters_in_one_batch_may_have_different_prompts(model: Any, tiny_tokenizer: Any) -> None:
    adapters = four(model)
    wanted = one_after_the_other(model, tiny_tokenizer, adapters)
    asked = [PROMPTS[:2], [], PROMPTS, PROMPTS[3:]]
    found = generate_together(model, tiny_tokenizer, adapters, asked, max_new_tokens=NEW)
    assert found == [wanted[0][:2], [], wanted[2], wanted[3][3:]]


def test_running_out_of_memory_halves_the_batch_and_rows_keep_their_adapter(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = four(model)
    wanted = one_after_the_other(model, tiny_tokenizer, adapters)
    forward, sizes = model.forward, []

    def small(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", small)
    found = generate_together(model, tiny_tokenizer, adapters, [PROMPTS] * 4, max_new_tokens=NEW)
    assert found == wanted and max(sizes) > 1


def test_adapters_that_do_not_fit_into_memory_name_a_remedy(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "side_by_side", full)
    with pytest.raises(ResourceError, match="--together"):
        generate_together(tiny_model, tiny_tokenizer, [], [])


@pytest.mark.parametrize(
    ("rows", "new", "candidates"),
    [
        (4, 8, 12),  # 48 rows
        (30, 8, 1),
        (2, 8, 16),  # the maximum number of merged adapters
        (4, 1000, 2),  # 8192 tokens fit 8 rows of slightly more than 1000
        (0, 8, 1),
    ],
)
def test_adapters_per_batch_fill_the_batch(
    tiny_model: Any, tiny_tokenizer: Any, rows: int, new: int, candidates: int
) -> None:
    prompts = ["Where?"] * rows
    assert adapters_per_batch(tiny_model, tiny_tokenizer, prompts, new) == candidates


@pytest.mark.slow
def test_a_real_model_generates_the_same_texts(data_folder: Path) -> None:
    """SmolLM2 with random adapters of rank 32 that move its weights by a few percent."""
    from mergeforget.data.readers import read_rows
    from mergeforget.models import load_model

    loaded = load_model("smollm2", device="cpu")
    rows = read_rows(data_folder / "lume" / "forget_validation.jsonl", split="forget")
    prompts = [row.input[:80] for row in rows if row.kind == "sc"][:6]
    names = [n for n, m in loaded.model.named_modules() if n.endswith("proj")]
    adapters = []
    for seed in range(2):
        draw, deltas = np.random.default_rng(seed), {}
        for name in names:
            rows_, columns = loaded.model.get_submodule(name).weight.shape
            a = (draw.standard_normal((32, columns)) * columns**-0.5).astype(np.float32)
            b = draw.standard_normal((rows_, 32)).astype(np.float32)
            deltas[name] = LowRankDelta(a, b, 0.01)
        adapters.append(Adapter(str(seed), deltas, {}))
    found = generate_together(
        loaded.model, loaded.tokenizer, adapters, [prompts] * 2, max_new_tokens=12
    )
    for texts, change in zip(found, adapters, strict=True):
        with applied(loaded.model, change):
            assert generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=12) == texts
    assert found[0] != found[1]
