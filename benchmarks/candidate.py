"""Measure the time until merged candidates can be evaluated, in place and through folders.

    python benchmarks/candidate.py [--rounds 3]

The model has SmolLM2-135M's shape in float32 with random weights, the adapters rank 32. The
reference is a loop over the densities: load the base and both adapters with PEFT, merge by
``ties``, save the merged adapter, load the base with it, ``merge_and_unload``. Ours merges all
densities in one sweep, adds each merge to one loaded model in place, and removes it again. Both end
with a model that computes logits; those of one density are compared first. Seconds per candidate,
medians; the two take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from merge_inputs import SHAPES, make_models, make_pair

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.candidate import Candidate
from mergeforget.merge.apply import Buffers, applied
from mergeforget.merge.engine import MergeSettings, sweep

SHAPE = "smollm2-135m"
DENSITIES = [i / 10 for i in range(1, 11)]


def usual(base: Path, pair: list[Path], density: float, place: Path) -> Any:
    """Load a separate model for each candidate, through files."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped: Any = PeftModel.from_pretrained(model, str(pair[0]), "over")
    wrapped.load_adapter(str(pair[1]), "under")
    wrapped.add_weighted_adapter(
        ["over", "under"], [1.0, 1.0], "merged", combination_type="ties", density=density
    )
    wrapped.save_pretrained(str(place), selected_adapters=["merged"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(place / "merged")).merge_and_unload()


def in_place(
    model: Any, pair: list[Adapter], buffers: Buffers, use: Callable[[int, Any], None]
) -> None:
    """Use one model for all candidates of the sweep."""
    how = MergeSettings(threads=torch.get_num_threads())
    for i, merged in enumerate(sweep(pair, Candidate("ties"), DENSITIES, how)):
        with applied(model, merged.adapter, buffers):
            use(i, model)


def seconds(act: Callable[[], Any]) -> float:
    """Return the wall time of a call, in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base, *_ = make_models(root, SHAPE, SHAPES[SHAPE][3])
        folders = make_pair(root / "pair", SHAPE, SHAPES[SHAPE][3])
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        pair, buffers = [read_adapter(folder) for folder in folders], Buffers()
        ids, found = torch.arange(12)[None], {}

        def compute(i: int, one: Any) -> None:
            with torch.no_grad():
                found[i] = one(ids).logits.clone()

        in_place(model, pair, buffers, compute)  # also warms up
        with torch.no_grad():
            wanted = usual(base, folders, DENSITIES[4], root / "merged")(ids).logits
        apart = float((found[4] - wanted).abs().max())
        assert apart < 1e-2, apart
        ours, theirs = [], []
        for _ in range(rounds):
            whole = seconds(lambda: in_place(model, pair, buffers, lambda i, one: None))
            ours.append(whole / len(DENSITIES))
            theirs.append(seconds(lambda: usual(base, folders, DENSITIES[4], root / "merged")))
    for name, times in (("in place", ours), ("through files", theirs)):
        middle = statistics.median(times)
        print(f"{name:14} {middle:.3f} s a candidate, {min(times):.3f} to {max(times):.3f}")
    print(f"ratio          {statistics.median(theirs) / statistics.median(ours):.1f}")


if __name__ == "__main__":
    main()
