"""Compare batched generation with the task's loop, one row at a time: time, memory and texts.

python benchmarks/evaluate.py --model smollm2 --data lume/forget_validation.jsonl --rows 64

Half of the rows are generated one by one, then all in batches, then the other half one by one, so
that other work on the machine slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergeforget.data.readers import read_rows
from mergeforget.evaluate.generate import generate
from mergeforget.models import load_model


@dataclass(frozen=True)
class Timed:
    """Cost of a call: wall and processor seconds, and peak memory in MB."""

    texts: list[str]
    wall: float
    processor: float
    peak: float

    def __add__(self, other: Timed) -> Timed:
        return Timed(
            self.texts + other.texts,
            self.wall + other.wall,
            self.processor + other.processor,
            max(self.peak, other.peak),
        )


def row_by_row(model: Any, tokenizer: Any, prompts: list[str], new: int) -> list[str]:
    """Generate one prompt at a time with transformers' generate and a key-value cache."""
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        ids = model.generate(
            **inputs,
            max_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.eos_token_id,
        )
        start = inputs["input_ids"].shape[1]
        found.append(str(tokenizer.decode(ids[0, start:], skip_special_tokens=True)))
    return found


def timed(work: Callable[[], list[str]]) -> Timed:
    """Do the work once."""
    _reset_peak()
    wall, processor = time.perf_counter(), time.process_time()
    texts = work()
    return Timed(texts, time.perf_counter() - wall, time.process_time() - processor, _peak())


def _reset_peak() -> None:
    """Reset the peak memory of the GPU, or of the process where Linux allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Return the peak memory since ``_reset_peak``, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(status["VmHWM"].split()[0]) * 1024 / 1e6


def compare(model: Any, tokenizer: Any, prompts: list[str], new: int) -> dict[str, Any]:
    """Measure both on the same prompts."""
    half = len(prompts) // 2
    generate(model, tokenizer, prompts[:2], max_new_tokens=2)  # costs of the first call only
    row_by_row(model, tokenizer, prompts[:1], 2)
    first = timed(lambda: row_by_row(model, tokenizer, prompts[:half], new))
    batched = timed(lambda: generate(model, tokenizer, prompts, max_new_tokens=new))
    single = first + timed(lambda: row_by_row(model, tokenizer, prompts[half:], new))
    return {
        "rows": len(prompts),
        "max_new_tokens": new,
        "row_by_row_s": single.wall,
        "batched_s": batched.wall,
        "times_faster": single.wall / batched.wall,
        "times_less_processor": single.processor / batched.processor,
        "same_text": sum(a == b for a, b in zip(single.texts, batched.texts, strict=True)),
        "row_by_row_peak_mb": single.peak,
        "batched_peak_mb": batched.peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    loaded = load_model(given.model)
    prompts = [row.input for row in read_rows(given.data)[: given.rows]]
    figures = compare(loaded.model, loaded.tokenizer, prompts, given.max_new_tokens)
    figures |= {
        "device": str(loaded.model.device),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    for name, value in figures.items():
        print(f"{name:20} {value:.2f}" if isinstance(value, float) else f"{name:20} {value}")
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
