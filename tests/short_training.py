"""A training of a few steps on five short rows of each set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl
from mergeforget.run import Run
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train_config import Lora, Term, Training

SETS = {
    name: [Row(f"{name}{i}-qa0", f"Who is {i}?", f"Ada {i} {name}.", "", name) for i in range(5)]
    for name in ("forget", "retain", "holdout")
}
TWO = {n: SETS[n] for n in ("forget", "retain")}
NPO, GD = Term(loss="npo", on="forget"), Term(loss="gd", on="retain")
GA = Term(loss="ga", on="forget")


def training(**more: Any) -> Training:
    """Six steps of NPO and gradient descent without noise, unless ``more`` changes it."""
    settings: dict[str, Any] = {
        "objective": [NPO, GD], "epochs": 2, "batch_size": 2, "gradient_accumulation": 1,
        "learning_rate": 1e-2, "snapshots": 1, "lora": Lora(r=2, lora_alpha=4, lora_dropout=0.0),
    }  # fmt: skip
    return Training(**settings | more)


def train_short(
    folder: Path, model: Any, tokenizer: Any, sets: dict[str, list[Row]], **more: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train an adapter with ``more`` settings; returns its weights and the history."""
    job = TrainingJob(Run(folder), "over", checkpoint_seconds=1e9)
    adapter = train_adapter(model, tokenizer, sets, training(**more), job)
    return load_file(adapter / "adapter_model.safetensors"), read_jsonl(job.run.history)
