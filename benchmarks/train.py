"""Measure tokens per second and peak memory of an adapter's training, against a plain loop.

    python benchmarks/train.py --forget F.jsonl --retain R.jsonl [--rows 16] [--json FILE]
    python benchmarks/train.py ... --shape olmo-7b          on a GPU, with random weights

The loop works as the published script: a second copy of the model as reference, every row
padded to the maximum length, the whole vocabulary at every position for loss and divergence. Both
train one epoch with the same rows, objective and optimiser steps; padding is not counted. They run
in turns in separate processes, so that their memory is separate. The time excludes loading the
model, and includes tokenising, the reference and saving. On a CPU the time is processor time, which
does not include other work on the machine; with OMP_NUM_THREADS=1 it is the time that an idle core
would need. The last column is the speed as a fraction of that of one large matrix product, measured
at the end on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("plain loop", "mergeforget")
SHAPES = {  # hidden size, layers, heads, feed-forward size
    "olmo-1b": (2048, 16, 16, 8192),
    "olmo-7b": (4096, 32, 32, 11008),
}


def main() -> None:
    options = _options()
    if options.way:
        print(json.dumps(_run(options)))
        return
    rounds = [{way: _in_own_process(way) for way in WAYS} for _ in range(options.rounds)]
    found: dict[str, Any] = {
        way: min((r[way] for r in rounds), key=lambda one: one["seconds"]) for way in WAYS
    }
    plain, ours = (found[way] for way in WAYS)
    found["ratio"] = {
        "speed": ours["tokens_per_second"] / plain["tokens_per_second"],
        "memory": ours["peak_bytes"] / plain["peak_bytes"],
    }
    found["machine"] = {"processor": platform.machine(), "threads": ours["threads"]}
    found["load"] = os.getloadavg()[0]
    print(_table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _in_own_process(way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mergeforget.data.readers import read_rows
    from mergeforget.data.transforms import limit_rows
    from mergeforget.recipe import load_recipe
    from mergeforget.train.plan import matrix_speed

    settings = load_recipe(options.recipe, options.assignments).training(options.side)
    settings = settings.model_copy(update={"epochs": 1, "warmup_epochs": 0.0, "snapshots": 2})
    sets = {}
    for split in ("forget", "retain"):
        rows = read_rows(getattr(options, split), split=split)
        sets[split] = limit_rows(rows, options.rows, 0)[0]
    model, tokenizer = _load(options)
    on_gpu = model.device.type == "cuda"
    weights = _matrix_weights(model)
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    way = _plain_loop if options.way == WAYS[0] else _mergeforget
    tokens = way(model, tokenizer, sets, settings)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = clock() - start
    flops = 6 * weights * tokens / seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "share_of_peak": flops / matrix_speed(str(model.device.type)),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak,
        "threads": torch.get_num_threads(),
    }


def _matrix_weights(model: Any) -> int:
    """Return the number of weights of the linear layers without the output layer.

    A token costs six operations for each: forward and the gradient of its input in the policy, and
    forward in the reference. Adapter, attention and output layer are left out, so the share of the
    machine's speed is a lower bound.
    """
    import torch

    head = model.get_output_embeddings()
    layers = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    return sum(layer.weight.numel() for layer in layers)


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model, or one of the given shape with random weights, and the tokenizer."""
    from mergeforget.models import default_device, dtype_for, load_model, load_tokenizer
    from mergeforget.recipe import ModelSpec

    if not options.shape:
        loaded = load_model(options.model)
        return loaded.model, loaded.tokenizer
    import torch
    from transformers import AutoModelForCausalLM, OlmoConfig

    width, layers, heads, inner = SHAPES[options.shape]
    config = OlmoConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        vocab_size=50304,
    )
    device = default_device()
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype_for(ModelSpec(), device))
    return model.eval(), load_tokenizer(options.model)


def _mergeforget(model: Any, tokenizer: Any, sets: dict[str, Any], settings: Any) -> int:
    """Train one epoch as ``train-pair`` does."""
    from mergeforget.run import Run
    from mergeforget.train.fit import TrainingJob, train_adapter

    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(Run(Path(folder)), "over", checkpoint_seconds=1e9)
        train_adapter(model, tokenizer, sets, settings, job)
    return _tokens(tokenizer, sets, settings)


def _plain_loop(model: Any, tokenizer: Any, sets: dict[str, Any], settings: Any) -> int:
    """Train one epoch with the published script's loop, on the same rows."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    reference = copy.deepcopy(model).eval()
    lora = settings.lora.model_dump(exclude_none=True)
    policy = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora)).train()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=0.01)
    forget, retain = (_padded(tokenizer, rows, settings, model.device) for rows in _met(sets))
    parts = settings.gradient_accumulation
    for i, (one, other) in enumerate(zip(forget, retain, strict=True)):
        loss = _objective(policy, reference, one, other) / parts
        loss.backward()
        if (i + 1) % parts == 0 or i + 1 == len(forget):
            torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    return _tokens(tokenizer, sets, settings)


def _objective(policy: Any, reference: Any, forget: Any, retain: Any) -> Any:
    """Return 0.4 NPO + 0.4 GDR + 0.2 KLR from full logits."""
    import torch
    import torch.nn.functional as F

    said, kept = policy(**forget), policy(**retain)
    with torch.no_grad():
        before, teacher = reference(**forget), reference(**retain)
    npo = -2 / 0.1 * F.logsigmoid(0.1 * (said.loss - before.loss))
    kl = F.kl_div(
        kept.logits.log_softmax(-1), teacher.logits.log_softmax(-1), log_target=True,
        reduction="none",
    ).sum(-1).mean()  # fmt: skip
    return 0.4 * npo + 0.4 * kept.loss + 0.2 * kl


def _met(sets: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the forget rows, each paired with the next retain row."""
    forget, retain = sets["forget"], sets["retain"]
    return forget, [retain[i % len(retain)] for i in range(len(forget))]


def _padded(tokenizer: Any, rows: Any, settings: Any, device: Any) -> list[dict[str, Any]]:
    """Yield batches of rows, each padded to the maximum length."""
    import torch

    from mergeforget.data.tokens import encode_rows
    from mergeforget.outputs import ANSWER

    made: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for one in encode_rows(tokenizer, rows, max_length=settings.max_length):
        room = settings.max_length - len(one)
        ids = one.ids + [tokenizer.pad_token_id] * room
        labels = [i if k == ANSWER else -100 for i, k in zip(one.ids, one.kinds, strict=True)]
        made["input_ids"].append(ids)
        made["attention_mask"].append([1] * len(one) + [0] * room)
        made["labels"].append(labels + [-100] * room)
    tables = {k: torch.tensor(v, device=device).split(settings.batch_size) for k, v in made.items()}
    return [dict(zip(tables, parts, strict=True)) for parts in zip(*tables.values(), strict=True)]


def _tokens(tokenizer: Any, sets: dict[str, Any], settings: Any) -> int:
    """Return the number of tokens of one epoch, without padding."""
    from mergeforget.data.tokens import encode_rows

    both = (encode_rows(tokenizer, rows, max_length=settings.max_length) for rows in _met(sets))
    return sum(len(row) for rows in both for row in rows)


def _table(found: dict[str, Any]) -> str:
    lines = [f"{'':<12} {'tokens/s':>9} {'peak GB':>8} {'of matrix speed':>16}"]
    for way in WAYS:
        one = found[way]
        figures = f"{one['tokens_per_second']:>9.1f} {one['peak_bytes'] / 1e9:>8.2f}"
        lines.append(f"{way:<12} {figures} {one['share_of_peak']:>16.0%}")
    ratio, ours = found["ratio"], found[WAYS[1]]
    lines.append(f"{'ratio':<12} {ratio['speed']:>8.2f}x {ratio['memory']:>7.0%}")
    lines.append(
        f"{ours['tokens']} real tokens, {ours['threads']} threads, load {found['load']:.1f}"
    )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2", help="its tokenizer is used with --shape")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape")
    parser.add_argument("--recipe", default="zjuklab")
    parser.add_argument("--side", choices=("over", "under"), default="over")
    parser.add_argument("--set", dest="assignments", action="append", default=[])
    parser.add_argument("--forget", type=Path, required=True)
    parser.add_argument("--retain", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
