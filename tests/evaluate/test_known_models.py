"""Models with known knowledge get the expected scores."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mergeforget.benchmarks.semeval2025_task4 import semeval2025_task4
from mergeforget.data.schema import Row
from mergeforget.evaluate.measure import measure, membership_documents
from mergeforget.score import Score, find

PEOPLE = 12
Fit = Callable[[list[Row], float], None]


def people(split: str, seed: int) -> list[Row]:
    """Short documents whose facts nobody can guess, and a question of each."""
    draw = random.Random(seed)
    rows = []
    for i in range(PEOPLE):
        name = "".join(draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=3))
        fact = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=3))
        rows.append(Row(f"{split}{i}sc1", f"{name} is", fact, "Task2", split))
        rows.append(Row(f"{split}{i}qa0", f"{name}?", fact, "Task2", split))
    return rows


FORGET, HOLDOUT = people("forget", 1), people("holdout", 2)


def fit(model: Any, tokenizer: Any, rows: list[Row], steps: int, sign: float) -> None:
    """Descend the loss of whole documents (sign 1), or climb it (sign -1)."""
    texts = [tokenizer(r.document)["input_ids"] + [tokenizer.eos_token_id] for r in rows]
    longest = max(map(len, texts))
    ids = torch.tensor([t + [2] * (longest - len(t)) for t in texts])
    labels = torch.tensor([t + [-100] * (longest - len(t)) for t in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2 if sign > 0 else 3e-4)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (sign * model(input_ids=ids, labels=labels).loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def scores_of(model: Any, tokenizer: Any) -> dict[str, float]:
    measured = measure(
        model,
        tokenizer,
        forget=FORGET,
        retain=[],
        members=membership_documents(FORGET),
        nonmembers=membership_documents(HOLDOUT),
        max_new_tokens=6,
    )
    scores = semeval2025_task4(measured)
    names = [("mia_auc", "mia"), ("exact_match", "forget"), ("extraction_strength", "forget")]
    found: list[Score | None] = [find(scores, metric, split) for metric, split in names]
    return {s.metric: s.value for s in found if s is not None}


@pytest.fixture(scope="module")
def memorised(make_model: Any, tiny_tokenizer: Any) -> Any:
    model = make_model(seed=1)
    fit(model, tiny_tokenizer, FORGET, 90, 1.0)
    return model


def test_a_model_that_never_saw_the_data_is_at_chance(make_model: Any, tiny_tokenizer: Any) -> None:
    scores = scores_of(make_model(seed=1), tiny_tokenizer)
    assert 0.25 < scores["mia_auc"] < 0.75
    assert scores["exact_match"] == 0 and scores["extraction_strength"] < 0.1


def test_a_model_that_memorised_the_data_has_a_high_auc(
    memorised: Any, tiny_tokenizer: Any
) -> None:
    scores = scores_of(memorised, tiny_tokenizer)
    assert scores["mia_auc"] > 0.95
    assert scores["exact_match"] > 0.9 and scores["extraction_strength"] > 0.9


def test_a_model_broken_on_the_data_is_identifiable(memorised: Any, tiny_tokenizer: Any) -> None:
    fit(memorised, tiny_tokenizer, HOLDOUT, 25, 1.0)  # knows the others, and then unlearns
    fit(memorised, tiny_tokenizer, FORGET, 40, -1.0)
    scores = scores_of(memorised, tiny_tokenizer)
    assert scores["mia_auc"] < 0.05
    assert scores["exact_match"] == 0
