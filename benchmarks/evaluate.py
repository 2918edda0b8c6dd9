"""Row by row, as the task's script generates, against our batches: time, memory, and the same text.

python benchmarks/evaluate.py --model smollm2 --data lume/forget_validation.jsonl --rows 64
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mergeforget.data.readers import read_rows
from mergeforget.evaluate.generate import generate
from mergeforget.models import load_model


def row_by_row(model: Any, tokenizer: Any, prompts: list[str], new: int) -> list[str]:
    """One prompt at a time by transformers' own generate, with a cache of keys and values."""
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


def timed(work: Callable[[], list[str]]) -> tuple[list[str], float, float]:
    """Result, seconds, and the peak memory so far in MB (of the process, or of the GPU)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    if torch.cuda.is_available():
        return result, seconds, torch.cuda.max_memory_allocated() / 1e6
    return result, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    loaded = load_model(given.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    prompts = [row.input for row in read_rows(given.data)[: given.rows]]
    new = given.max_new_tokens
    single, slow, memory = timed(lambda: row_by_row(model, tokenizer, prompts, new))
    batched, fast, more = timed(lambda: generate(model, tokenizer, prompts, max_new_tokens=new))
    same = sum(a == b for a, b in zip(single, batched, strict=True))
    figures = {
        "rows": len(prompts),
        "max_new_tokens": new,
        "row_by_row_s": slow,
        "batched_s": fast,
        "times_faster": slow / fast,
        "same_text": same,
        "row_by_row_peak_mb": memory,
        "batched_peak_mb": more,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    for name, value in figures.items():
        print(f"{name:20} {value:.2f}" if isinstance(value, float) else f"{name:20} {value}")
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
