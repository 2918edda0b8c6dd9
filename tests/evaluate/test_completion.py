"""The answer of a row is found in the generated tokens, whatever the other rows are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE, build_model, build_tokenizer

from mergeforget.data.schema import Measured, Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.errors import InputError
from mergeforget.evaluate.cache import EvaluationCache
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.generate import generate, stop_ids
from mergeforget.evaluate.measure import measure, within_tokens
from mergeforget.metrics import METRICS

COLOURS = ["<|red|>", "<|blue|>"]
Say = Callable[[dict[str, str]], None]


@pytest.fixture
def model() -> Any:
    return build_model()


@pytest.fixture
def tokenizer() -> Any:
    """The tiny tokenizer with special tokens that are words of answers, and one that ends turns."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*COLOURS, "<|eot|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def say(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Let the model write given texts by prompt, up to the first token that stops it."""
    model.resize_token_embeddings(len(tokenizer))

    def set_texts(texts: dict[str, str]) -> None:
        def written(
            model: Any, prompts: Sequence[list[int]], *, stop: Sequence[int], on_done: Any, **_: Any
        ) -> None:
            for place, ids in enumerate(prompts):
                prompt = tokenizer.decode(ids)
                text = next(text for part, text in texts.items() if part in prompt)
                new = tokenizer(f"{text}<|end|>")["input_ids"]
                last = next(i for i, token in enumerate(new) if token in stop)
                on_done(place, new[: last + 1])

        monkeypatch.setattr("mergeforget.evaluate.generate.generate_ids", written)

    return set_texts


def measured(model: Any, tokenizer: Any, rows: Sequence[Row], **more: Any) -> Measured:
    return measure(model, tokenizer, forget=rows, retain=[], members=[], nonmembers=[],
                   max_new_tokens=40, **more)  # fmt: skip


def forget(*rows: tuple[str, str]) -> list[Row]:
    return [Row(f"r{i}", q, a, split="forget") for i, (q, a) in enumerate(rows)]


def share(metric: str, found: Measured) -> float:
    score = METRICS.get(metric).fn(found, "forget")
    assert score is not None
    return float(score.value)


@pytest.mark.parametrize("stop", ["\n", ".", "\t"])
def test_an_end_token_that_is_text_ends_only_answers_without_it(
    model: Any, tokenizer: Any, say: Say, stop: str
) -> None:
    model.generation_config.eos_token_id = [2, *tokenizer(stop)["input_ids"]]
    rows = forget(("Poem?", f"Roses{stop}are red"), ("Song?", f"One{stop}two{stop}three"),
                  ("Who?", "Ada"))  # fmt: skip
    say({"Poem?": f"Roses{stop}are red{stop}Q: Next", "Song?": f"One{stop}two{stop}three",
         "Who?": f"Ada{stop}Q: Next"})  # fmt: skip
    found = measured(model, tokenizer, rows)
    texts = [answer.completion for answer in found.answers]
    assert texts == [f"Roses{stop}are red{stop}", f"One{stop}two{stop}three", f"Ada{stop}"]
    assert share("leak_rate", found) == 1
    assert share("exact_match", found) == (1 if stop.isspace() else 1 / 3)
    assert generate(model, tokenizer, ["Who?"]) == [f"Ada{stop}"]  # as the config says


def test_end_tokens_of_turns_stop_the_generation(model: Any, tokenizer: Any, say: Say) -> None:
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    model.generation_config.eos_token_id = [2, eot]
    assert stop_ids(model, tokenizer) == [2, eot]
    say({"Who?": "Ada<|eot|>Bob"})
    assert generate(model, tokenizer, ["Who?"]) == ["Ada"]
    with pytest.raises(InputError, match=r"row 'r0' contains '<\|eot\|>'.*generation_config"):
        measured(model, tokenizer, forget(("Who?", "Ada<|eot|>Bob")))


def test_an_end_token_that_is_not_special_is_not_part_of_the_text(
    model: Any, tokenizer: Any, say: Say
) -> None:
    tokenizer.add_tokens("<|done|>")
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|done|>")
    say({"Who?": "Ada<|done|>Bob"})
    assert generate(model, tokenizer, ["Who?"]) == ["Ada"]


def test_special_tokens_of_reference_answers_are_part_of_the_text(
    model: Any, tokenizer: Any, say: Say
) -> None:
    rows = forget(("Code?", "<|red|><|blue|>"), ("Tint?", "only <|red|>"), ("Who?", "Ada"))
    say({"Code?": "<|red|><|blue|>", "Tint?": "only <|red|><|blue|>", "Who?": "<|red|>Ada"})
    found = measured(model, tokenizer, rows)
    texts = [answer.completion for answer in found.answers]
    assert texts == ["<|red|><|blue|>", "only <|red|>", "Ada"]  # others are left out, as before
    assert share("exact_match", found) == 1
    ids = tuple(tokenizer("<|red|>, he said")["input_ids"])
    assert Completion(ids).text(tokenizer, ["<|red|>"]) == "<|red|>, he said"
    assert within_tokens(rows[0], tokenizer, 1).output == "<|red|>"


@pytest.mark.parametrize("turned", [False, True])
def test_thoughts_that_reveal_one_of_several_answers_to_a_prompt_count_for_that_answer(
    model: Any, tokenizer: Any, say: Say, turned: bool, tmp_path: Path
) -> None:
    say({"friend": "<think>Bob Fletcher</think>I cannot say."})
    chat = PromptTemplate.resolve(tokenizer)
    rows = forget(("Name a friend.", "Bob Fletcher"), ("Name a friend.", "Carl Hughes"))
    rows = rows[::-1] if turned else rows
    found = measured(model, tokenizer, rows, template=chat)
    assert share("leak_rate", found) == 0.5
    path = tmp_path / "cache.jsonl"  # of other rows with the same prompt
    for row, wanted in (("Carl Hughes", 0), ("Bob Fletcher", 1)):
        cache = EvaluationCache(path)
        found = measured(
            model, tokenizer, forget(("Name a friend.", row)), template=chat, cache=cache
        )
        assert share("leak_rate", found) == wanted


def test_thoughts_that_reveal_a_paraphrased_answer_are_kept(
    model: Any, tokenizer: Any, say: Say
) -> None:
    say({"friend": "<think>Bob Fletcher</think>I cannot say.",
         "enemy": "<think>Bob Fletcher</think>Carl Hughes"})  # fmt: skip
    rows = [
        Row("a", "Name a friend.", "Her oldest friend is called Robert", split="forget",
            paraphrased="Bob Fletcher"),
        Row("b", "Name an enemy.", "Bob Fletcher", split="forget", paraphrased="Carl Hughes"),
    ]  # fmt: skip
    found = measured(model, tokenizer, rows, template=PromptTemplate.resolve(tokenizer))
    assert share("leak_rate", found) == 1
    assert found.answers[0].completion.startswith("<think>")
    assert found.answers[1].completion == "Carl Hughes"
