"""Made-up rows that a tiny model can memorise, and its training."""

from __future__ import annotations

import random
from typing import Any

import torch

from mergeforget.data.schema import Row

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def people(split: str, seed: int, n: int = 8) -> list[Row]:
    """Short documents whose facts nobody can guess, and a question of each."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        name, fact = (
            "".join(draw.choices(LETTERS.upper(), k=3)),
            "".join(draw.choices(LETTERS, k=4)),
        )
        rows.append(Row(f"{split}{i}sc1", f"{name} is", fact, "T", split))
        rows.append(Row(f"{split}{i}qa0", f"{name}?", fact, "T", split))
    return rows


FORGET, RETAIN, HOLDOUT = people("forget", 1), people("retain", 2, 4), people("holdout", 3)


def train(model: Any, tokenizer: Any, rows: list[Row], steps: int, rate: float) -> None:
    """Descend the loss of whole documents; climb it where the rate is below 0."""
    texts = [tokenizer(r.document)["input_ids"] + [tokenizer.eos_token_id] for r in rows]
    longest = max(map(len, texts))
    ids = torch.tensor([t + [2] * (longest - len(t)) for t in texts])
    labels = torch.tensor([t + [-100] * (longest - len(t)) for t in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=abs(rate))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(input_ids=ids, labels=labels).loss * (1 if rate > 0 else -1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
