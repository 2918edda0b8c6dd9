"""Merging against PEFT and mergekit: both sides in one run on the same inputs, parity asserted.

    python benchmarks/merge.py                     adapters of SmolLM2-135M's shape
    python benchmarks/merge.py --shape olmo-1b --layers 2
    python benchmarks/merge.py --checkpoints       whole checkpoints against mergekit

Prints one table (wall and CPU seconds, peak memory, ratio of CPU seconds) and writes it as JSON.
PEFT's SVD types are measured on the layers asked for and scaled to the shape's own number, which is
said. CPU seconds are what to compare on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget.adapter import PREFIX, Adapter, read_adapter
from mergeforget.candidate import Candidate
from mergeforget.merge.blockwise import merge_whole
from mergeforget.merge.engine import How, merge_adapters, products, sweep
from mergeforget.merge.full import merge_models
from mergeforget.merge.request import canonical
from mergeforget.merge.tensorwise import Output
from mergeforget.run import machine, versions
from mergeforget.tensors import write_safetensors

RANK, ALPHA, DENSITY = 32, 64, 0.5
SHAPES = {  # hidden, key-value width, intermediate, layers
    "smollm2-135m": (576, 192, 1536, 30),
    "olmo-1b": (2048, 2048, 8192, 16),
    "7b-layer": (4096, 4096, 11008, 1),
}


@dataclass
class Row:
    """One measurement: seconds of one side, and what they are scaled by."""

    work: str
    side: str
    wall: float
    cpu: float
    peak_mb: float
    scaled: float = 1.0


def measured(work: str, side: str, act: Callable[[], Any], scaled: float = 1.0) -> tuple[Row, Any]:
    """Run once to warm up and once to measure."""
    result = act()
    wall, cpu = time.perf_counter(), time.process_time()
    result = act()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = Row(work, side, wall * scaled, cpu * scaled, peak, scaled)
    print(f"{work:16} {side:12} {row.wall:9.3f} {row.cpu:9.3f} {peak:8.0f}", flush=True)
    return row, result


def modules(shape: str, layers: int) -> dict[str, tuple[int, int]]:
    """Name -> (out, in) of every linear layer."""
    hidden, kv, inner, _ = SHAPES[shape]
    kinds = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    return {f"model.layers.{i}.{n}": size for i in range(layers) for n, size in kinds.items()}


def make_pair(root: Path, shape: str, layers: int) -> list[Path]:
    """Two adapters that start from one A, with heavy-tailed B of a falling spectrum."""
    draw = np.random.default_rng(0)
    tensors: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    spectrum = np.exp(-np.arange(RANK) / 12) * 0.02
    for module, (rows, columns) in modules(shape, layers).items():
        first = draw.uniform(-1, 1, (RANK, columns))
        shared = draw.standard_normal((rows, RANK))
        for side, sign in zip(tensors, (0.5, -0.15), strict=True):
            a = (first + 0.15 * draw.uniform(-1, 1, first.shape)) / columns**0.5
            b = (sign * shared + draw.standard_t(4, shared.shape)) * spectrum
            side[f"{PREFIX}{module}.lora_A.weight"] = a.astype(np.float32)
            side[f"{PREFIX}{module}.lora_B.weight"] = b.astype(np.float32)
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": shape,
        "target_modules": sorted({m.rpartition(".")[2] for m in modules(shape, layers)}),
    }  # fmt: skip
    folders = [root / "over", root / "under"]
    for folder, side in zip(folders, tensors, strict=True):
        folder.mkdir(parents=True)
        write_safetensors(folder / "adapter_model.safetensors", side)
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folders


def peft_model(pair: list[Path], shape: str, layers: int) -> Any:
    """The pair on a base whose weights are never touched."""
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, kv, inner, _ = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=128, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=kv // 64,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    wrapped = PeftModel.from_pretrained(model, str(pair[0]), "over")
    wrapped.load_adapter(str(pair[1]), "under")
    return wrapped


def peft_merge(model: Any, kind: str, density: float = DENSITY) -> dict[str, Any]:
    """Merge under a fresh name; returns the factors of the result by module."""
    if "merged" in model.peft_config:
        model.delete_adapter("merged")
    given = {} if kind in ("linear", "cat", "svd") else {"density": density}
    model.add_weighted_adapter(
        ["over", "under"], [1.0, 1.0], "merged", combination_type=kind, **given
    )
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    return {n: (m.lora_A["merged"].weight, m.lora_B["merged"].weight) for n, m in layers.items()}


def assert_parity(
    candidate: Candidate, sources: list[Adapter], ours: Adapter, theirs: dict[str, Any]
) -> None:
    """Factor space and cat: equal bits. SVD: what is left out of the change exceeds PEFT's little.

    Products themselves may differ: where singular values at the cut are close, so are many cuts.
    """
    for module, delta in ours.deltas.items():
        a, b = (x.detach().numpy() for x in theirs[module])
        if candidate.method.endswith("svd"):
            step = canonical(candidate)
            stack = products([source.deltas[module] for source in sources])
            [meant] = merge_whole(stack, np.ones(len(sources)), [step], module)
            left, least = np.linalg.norm(meant - delta.dense()), np.linalg.norm(meant - b @ a)
            assert left <= least * 1.0005, (module, left, least)
        elif not candidate.method.startswith("dare"):
            assert np.array_equal(delta.a, a) and np.array_equal(delta.b, b), module


def adapters(shape: str, layers: int, kinds: list[str]) -> list[Row]:
    """Every kind of merge, and a sweep over ten densities."""
    full = SHAPES[shape][3]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        pair = make_pair(Path(place), shape, layers)
        sources = [read_adapter(folder) for folder in pair]
        model = peft_model(pair, shape, layers)
        how = How(threads=1 if os.environ.get("OMP_NUM_THREADS") == "1" else 0)
        for kind in kinds:
            density = None if kind in ("linear", "cat", "svd") else DENSITY
            candidate = Candidate(kind, density)
            row, ours = measured(
                kind,
                "mergeforget",
                lambda c=candidate: merge_adapters(sources, c, how),
                full / layers,
            )
            theirs_row, theirs = measured(
                kind, "PEFT", lambda k=kind: peft_merge(model, k), full / layers
            )
            assert_parity(candidate, sources, ours.adapter, theirs)
            rows += [row, theirs_row]
        densities = [i / 10 for i in range(1, 11)]
        row, _ = measured(
            "ten densities",
            "mergeforget",
            lambda: sweep(sources, Candidate("ties"), densities, how),
            full / layers,
        )
        other, _ = measured(
            "ten densities",
            "PEFT",
            lambda: [peft_merge(model, "ties", d) for d in densities],
            full / layers,
        )
        rows += [row, other]
    return rows


def make_models(root: Path, shape: str, layers: int) -> list[Path]:
    """A base and two models in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, kv, inner, _ = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=49152, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=kv // 64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name in ("base", "one", "two"):
        model.save_pretrained(root / name)
        for parameter in model.parameters():
            parameter.data += (0.002 * torch.randn_like(parameter)).to(torch.bfloat16)
    return [root / name for name in ("base", "one", "two")]


def checkpoints(shape: str, layers: int, methods: list[str]) -> list[Row]:
    """Whole checkpoints; neither side waits for the disk."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    from mergeforget.merge.mergekit_bridge import Request, read_config

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base, one, two = make_models(root, shape, layers)
        for method in methods:
            own = {"weight": 0.5} | (
                {} if method in ("linear", "task_arithmetic") else {"density": 0.5}
            )
            config: dict[str, Any] = {
                "merge_method": method,
                "models": [{"model": str(m), "parameters": own} for m in (one, two)],
                "dtype": "bfloat16",
            }
            if method != "linear":
                config["base_model"] = str(base)
            path = root / "config.yml"
            path.write_text(yaml.safe_dump(config))
            request = read_config(path)
            assert isinstance(request, Request)
            origin = base if request.base else None
            output = Output(dtype="bfloat16", durable=False)
            theirs = MergeConfiguration.model_validate(config)
            options = MergeOptions(quiet=True, write_model_card=False)
            out = root / method
            inputs = ([one, two], origin, request.candidate, out / "ours", output)
            rows.append(measured(method, "mergeforget", partial(merge_models, *inputs))[0])
            run = partial(run_merge, theirs, str(out / "theirs"), options)
            rows.append(measured(method, "mergekit", run)[0])
    return rows


def bandwidth() -> float:
    """Bytes a second that one copy of a large array reads and writes: the floor of any merge."""
    source = np.ones(1 << 26, np.float32)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="how many to measure; SVD types are scaled up")
    parser.add_argument("--kinds", default="linear,cat,ties,dare_ties,magnitude_prune,svd,ties_svd")
    parser.add_argument("--checkpoints", action="store_true")
    parser.add_argument("--methods", default="linear,task_arithmetic,ties,dare_ties")
    parser.add_argument("--json", type=Path, default=Path("benchmark-merge.json"))
    told = parser.parse_args()
    layers = told.layers or SHAPES[told.shape][3]
    print(f"{'work':16} {'side':12} {'wall s':>9} {'CPU s':>9} {'peak MB':>8}")
    if told.checkpoints:
        rows = checkpoints(told.shape, layers, told.methods.split(","))
    else:
        rows = adapters(told.shape, layers, told.kinds.split(","))
    speed = bandwidth()
    print(f"{told.shape}, {layers} layers measured; memory copies at {speed / 1e9:.1f} GB/s")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        print(f"{ours.work:16} {theirs.cpu / ours.cpu:8.1f} times less CPU than {theirs.side}")
    facts = {
        "shape": told.shape,
        "layers": layers,
        "bandwidth": speed,
        "rows": [asdict(r) for r in rows],
    }
    told.json.write_text(json.dumps(facts | versions() | machine(), indent=2) + "\n")


if __name__ == "__main__":
    main()
