"""A merge made ready to be measured: applied in place and undone, or model and adapter loaded.

    python benchmarks/candidate.py [--rounds 7]

The model has SmolLM2-135M's shape in float32 with random weights, the merged adapter rank 32. The
usual way is a loop's: read the model, read the adapter by PEFT, ``merge_and_unload``. Ours adds the
adapter, which a merge has just made in memory, to the loaded model, and takes it off again. They
take turns; logits are compared first. Medians, and the range of the rounds.
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
from mergeforget.merge.apply import Buffers, applied

SHAPE = "smollm2-135m"


def usual(base: Path, folder: Path) -> Any:
    """A model of its own for each candidate."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def in_place(model: Any, adapter: Adapter, buffers: Buffers, use: Callable[[Any], Any]) -> Any:
    """One model for all."""
    with applied(model, adapter, buffers):
        return use(model)


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as place:
        base, *_ = make_models(Path(place), SHAPE, SHAPES[SHAPE][3])
        merged, _ = make_pair(Path(place) / "pair", SHAPE, SHAPES[SHAPE][3])
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapter, buffers = read_adapter(merged), Buffers()
        ids = torch.arange(12)[None]
        with torch.no_grad():
            wanted = usual(base, merged)(ids).logits
            found = in_place(model, adapter, buffers, lambda one: one(ids).logits)
        assert torch.allclose(found, wanted, atol=1e-3), float((found - wanted).abs().max())
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(seconds(lambda: in_place(model, adapter, buffers, lambda one: None)))
            theirs.append(seconds(lambda: usual(base, merged)))
    for name, found_s in (("in place", ours), ("usual way", theirs)):
        middle = statistics.median(found_s)
        print(f"{name:10} {middle:.3f} s, {min(found_s):.3f} to {max(found_s):.3f}")
    print(f"ratio      {statistics.median(theirs) / statistics.median(ours):.1f}")


if __name__ == "__main__":
    main()
