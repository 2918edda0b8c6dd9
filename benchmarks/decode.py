"""Compare generation for several candidates in one batch with one candidate after the other.

    python benchmarks/decode.py RUN [--rows 4,12,48] [--candidates 4,8] [--turns 3] [--out FILE]

RUN is a trained pair (`mergeforget demo`, or `train-pair`); it is read, not changed. The candidates
are merges of the pair in factor space by `ties` at densities spread from 0.1 to 1. Both generate
answers to the same rows, up to the recipe's max_new_tokens, and take turns; the time to add and
remove adapters is included. On a CPU the time is processor time, which other work on the machine
changes little; on a GPU it is wall time. Prints one table with the medians, their ratio and the
number of answers whose texts differ, and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.data.readers import read_rows
from mergeforget.evaluate.generate import generate, generate_together
from mergeforget.files import write_json
from mergeforget.merge.apply import Buffers, applied
from mergeforget.models import load_model
from mergeforget.recipe import load_recipe
from mergeforget.run import Run, machine, versions
from mergeforget.search.evaluator import merge_all, read_pair

Texts = list[list[str]]  # of each candidate


@dataclass(frozen=True)
class Bench:
    """The model before unlearning, and the generators that run on it."""

    model: Any
    tokenizer: Any
    adapters: Sequence[Adapter]
    prompts: Sequence[str]
    max_new_tokens: int
    buffers: Buffers

    def one_after_the_other(self, rows: int, candidates: int) -> Texts:
        """Generate with each candidate merged into the weights in place."""
        texts = []
        for adapter in self.adapters[:candidates]:
            with applied(self.model, adapter, self.buffers):
                texts.append(generate(self.model, self.tokenizer, self.some(rows), **self.how))
        return texts

    def side_by_side(self, rows: int, candidates: int) -> Texts:
        """Generate with all candidates in one batch, unmerged."""
        adapters = self.adapters[:candidates]
        every = [self.some(rows)] * len(adapters)
        return generate_together(self.model, self.tokenizer, adapters, every, **self.how)

    def some(self, rows: int) -> list[str]:
        """Return this number of prompts, from all parts of the data."""
        return [self.prompts[i * len(self.prompts) // rows] for i in range(rows)]

    @property
    def how(self) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens, "label": ""}


def main() -> None:
    """Measure every number of rows with every number of candidates."""
    options = arguments()
    bench = loaded(options)
    print(f"{'rows':>6}{'candidates':>12}{'in place s':>12}{'together s':>12}{'ratio':>7}  differ")
    results = []
    for rows in options.rows:
        for candidates in options.candidates:
            r = compared(bench, rows, candidates, options.turns)
            results.append(r)
            print(
                f"{rows:6}{candidates:12}{r['in_place']:12.2f}{r['together']:12.2f}"
                f"{r['in_place'] / r['together']:7.2f}  {r['differ']} of {rows * candidates}",
                flush=True,
            )
            facts = {"machine": machine(), "versions": versions(), "load": os.getloadavg()}
            write_json(options.out, {"results": results, **facts})


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=numbers, default=[4, 12, 48])
    parser.add_argument("--candidates", type=numbers, default=[4, 8])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("decode.json"))
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """``4,12`` as a list."""
    return [int(word) for word in text.split(",")]


def loaded(options: argparse.Namespace) -> Bench:
    """Load the base of a run, candidates of its pair and the prompts of its data."""
    run = Run(options.run)
    recipe, most = load_recipe(run.recipe), max(options.candidates)
    densities = [round(0.1 + 0.9 * i / max(1, most - 1), 2) for i in range(most)]
    merged = merge_all(read_pair(run), [Candidate("ties", density) for density in densities])
    spec = recipe.model.model_copy(update={"name": run.base()})
    model = load_model(spec, device=options.device)
    rows = [
        row
        for split in ("forget", "retain")
        for row in read_rows(run.data / f"{split}.jsonl", split=split)
    ]
    return Bench(
        model.model,
        model.tokenizer,
        [m.adapter for m in merged],
        [row.input for row in rows],
        recipe.evaluation.max_new_tokens,
        {},
    )


def compared(bench: Bench, rows: int, candidates: int, turns: int) -> dict[str, Any]:
    """Return the medians of both in seconds, and the number of different texts."""
    ways = (bench.one_after_the_other, bench.side_by_side)
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
    texts: dict[str, Texts] = {}
    for _ in range(turns):
        for way in ways:
            took, texts[way.__name__] = timed(way, rows, candidates, bench.model.device.type)
            seconds[way.__name__].append(took)
    one, other = (sum(texts[way.__name__], []) for way in ways)
    return {
        "rows": rows,
        "candidates": candidates,
        "in_place": statistics.median(seconds["one_after_the_other"]),
        "together": statistics.median(seconds["side_by_side"]),
        "seconds": seconds,
        "differ": sum(a != b for a, b in zip(one, other, strict=True)),
    }


def timed(
    way: Callable[[int, int], Texts], rows: int, candidates: int, device: str
) -> tuple[float, Texts]:
    """The texts are on the CPU when the call ends, so the GPU has finished."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    texts = way(rows, candidates)
    return clock() - start, texts


if __name__ == "__main__":
    main()
