"""MMLU: the task's prompts, and the same choices in batches as one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergeforget.errors import InputError
from mergeforget.evaluate.mmlu import (
    Question,
    choose,
    common_prefix,
    fitting_prompt,
    prompt_of,
    read_questions,
    run_mmlu,
)

QUESTION = Question("2 + 2?", ("3", "4", "5", "6"), "B")


def test_the_prompt_equals_the_tasks_prompt_exactly() -> None:
    expected = (
        "The following are multiple choice questions (with answers) about  high school biology."
        "\n\n2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B\n\n2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
    )
    assert prompt_of("high_school_biology", [QUESTION], QUESTION) == expected


def test_examples_are_removed_until_the_prompt_fits(tiny_tokenizer: Any) -> None:
    long = Question("x" * 950, ("3", "4", "5", "6"), "B")
    ids = fitting_prompt(tiny_tokenizer, "law", [QUESTION, long, long], QUESTION)
    assert tiny_tokenizer.decode(ids) == prompt_of("law", [QUESTION, long], QUESTION)


def test_choices_by_batch_equal_choices_one_by_one(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        for layer in tiny_model.model.layers:
            layer.self_attn.o_proj.weight.mul_(40)
    questions = [Question(f"{i * 7919}?", ("a", "b" * i, "c", "d"), "A") for i in range(12)]
    prompts = [fitting_prompt(tiny_tokenizer, "law", [QUESTION], q) for q in questions]
    letters = list(range(3, 259))  # all bytes: a random model hardly distinguishes four letters
    assert common_prefix(prompts) > 100
    plain = []
    for ids in prompts:
        with torch.no_grad():
            logits = tiny_model(torch.tensor([ids])).logits[0, -1]
        plain.append(int(logits[letters].softmax(-1).argmax()))
    for budget in (1, 700, 100_000):
        assert choose(tiny_model, prompts, letters, budget) == plain


def test_one_question_and_no_question_are_supported(tiny_model: Any) -> None:
    assert choose(tiny_model, [], [5, 6, 7, 8], None) == []
    assert choose(tiny_model, [[9]], [5, 6, 7, 8], None)[0] in range(4)


def test_all_questions_are_read_as_text(data_folder: Path) -> None:
    folder = data_folder / "mmlu" / "test"
    every = [q for path in sorted(folder.glob("*.csv")) for q in read_questions(path)]
    assert len(every) == 14_042
    assert sum(choice == "None" for q in every for choice in q.choices) == 10


def test_malformed_files_are_named(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="does not contain MMLU"):
        run_mmlu(tiny_model, tiny_tokenizer, tmp_path)
    (tmp_path / "x_test.csv").write_text("What?,1,2,3,4,E\n")
    with pytest.raises(InputError, match="question 1"):
        read_questions(tmp_path / "x_test.csv")
