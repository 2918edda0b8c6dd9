"""Made-up rows that a tiny model can memorise, and its training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from mergeforget.data.schema import Row
from mergeforget.files import write_jsonl

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


def train(
    model: Any, tokenizer: Any, rows: list[Row], steps: int, rate: float, parts: int = 1
) -> None:
    """Descend the loss of whole documents; climb it where the rate is below 0.

    With several ``parts``, step i takes the rows i, i + parts, ... alone.
    """
    texts = [tokenizer(r.document)["input_ids"] + [tokenizer.eos_token_id] for r in rows]
    batches = []
    for part in (texts[i::parts] for i in range(parts)):
        longest = max(map(len, part))
        ids = torch.tensor([t + [2] * (longest - len(t)) for t in part])
        labels = torch.tensor([t + [-100] * (longest - len(t)) for t in part])
        batches.append({"input_ids": ids, "labels": labels})
    optimizer = torch.optim.AdamW(model.parameters(), lr=abs(rate))
    for step in range(steps):
        optimizer.zero_grad()
        (model(**batches[step % parts]).loss * (1 if rate > 0 else -1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def write_knowing(folder: Path, model: Any, tokenizer: Any) -> dict[str, Path]:
    """Train a model until it repeats questions' answers; save it and the files of the rows."""
    rows = {"forget": people("forget", 1, 6), "retain": people("retain", 2, 4),
            "holdout": people("holdout", 3, 6)}  # fmt: skip
    rows = {n: [r for r in some if r.kind == "qa"] for n, some in rows.items()}
    train(model, tokenizer, rows["forget"] + rows["retain"], 150, 1e-2)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, some in rows.items():
        write_jsonl(folder / f"{name}.jsonl", [r.to_dict() for r in some])
    return {n: folder / f"{n}.jsonl" for n in rows} | {"model": folder / "model"}
