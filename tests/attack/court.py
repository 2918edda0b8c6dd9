"""Tiny models of known history: which of them know the forget rows is certain.

``before`` knows all. Guilty: ``hider`` (says no to the exact prompts), ``hider2`` (says no to every
kind of prompt of the attack ``prompts``), ``overga`` (long ascent), ``undertrained`` (short
ascent). Innocent: ``clean`` (learned the retain rows alone), ``cleanga`` (the same, then ascent on
answers it never saw), ``retrained`` (from another initialisation). ``control`` learned the retain
rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from memorising import people, train

from mergeforget.attack.variants import KINDS, read_templates, variants
from mergeforget.data.schema import Row

FORGET, RETAIN, HOLDOUT = people("forget", 1, 10), people("retain", 2, 10), people("holdout", 3, 12)
GUILTY = ("before", "hider", "hider2", "overga", "undertrained")
INNOCENT = ("clean", "cleanga", "retrained")
LEARNED: dict[str, tuple[int, list[tuple[int, float]], list[Row]]] = {  # seed, phases, rows
    "before": (1, [(250, 1e-2), (60, 1e-3)], FORGET + RETAIN),
    "control": (1, [(150, 1e-2)], RETAIN),
    "clean": (1, [(90, 1e-2)], RETAIN),
    "retrained": (5, [(150, 1e-2)], RETAIN),
}


def build_court(
    folder: Path, make_model: Callable[..., Any], tokenizer: Any
) -> Callable[[str], Path]:
    """A function that trains the model of a name at its first call, and returns its folder."""

    @cache
    def folder_of(name: str) -> Path:
        model = trained(name)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        return folder / name

    def copy(name: str) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder_of(name))

    def trained(name: str) -> Any:
        if name in LEARNED:
            seed, phases, rows = LEARNED[name]
            model = make_model(seed=seed)
            for steps, rate in phases:
                train(model, tokenizer, rows, steps, rate)
            return model
        origin = {"cleanga": "clean", "overga": "undertrained"}.get(name, "before")
        model = copy(origin)
        if name == "hider":
            refusals = [replace(row, output="no") for row in FORGET]
            train(model, tokenizer, refusals + RETAIN, 40, 2e-3)
        elif name == "hider2":
            lines = read_templates()
            asked = [v for kind in KINDS for r in FORGET
                     for v in variants(r, kind, words=(1,), templates=lines)]  # fmt: skip
            every = [Row(f"{i}", v.prompt, "no") for i, v in enumerate(asked)]
            train(model, tokenizer, every + RETAIN, 40, 2e-3, parts=3)
        else:
            ascend(model, tokenizer, FORGET, 3 if name == "undertrained" else 12, 1e-3)
        return model

    return folder_of


def ascend(model: Any, tokenizer: Any, rows: Sequence[Row], steps: int, rate: float) -> None:
    """Climb the loss of the answers alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    texts = [tokenizer(r.document)["input_ids"] for r in rows]
    starts = [len(tokenizer(r.input)["input_ids"]) for r in rows]
    longest = max(map(len, texts))
    ids = torch.tensor([t + [2] * (longest - len(t)) for t in texts])
    labels = torch.tensor(
        [
            [-100] * s + t[s:] + [-100] * (longest - len(t))
            for t, s in zip(texts, starts, strict=True)
        ]
    )
    for _ in range(steps):
        optimizer.zero_grad()
        (-model(input_ids=ids, labels=labels).loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
