"""The writers of results that ``mergeforget.testing.faults`` interrupts, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Writer:
    """A writer under test.

    Attributes:
        write: Writes a result into a folder; the version (1 or 2) decides its content.
        version: Reads the version back from a complete result, and raises for any other.
    """

    write: Callable[[Path, int], None]
    version: Callable[[Path], int]


def _folder(work: Path, version: int) -> None:
    from mergeforget.replace import replacing

    with replacing(work / "result") as temporary:
        temporary.mkdir()
        for name in ("candidate.json", "weights.safetensors"):
            (temporary / name).write_text(json.dumps({"version": version}))


def _folder_version(work: Path) -> int:
    found = {
        json.loads((work / "result" / name).read_text())["version"]
        for name in ("candidate.json", "weights.safetensors")
    }
    (version,) = found
    return int(version)


def _adapter(seed: int) -> Any:
    import numpy as np

    from mergeforget.adapter import Adapter, LowRankDelta

    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, 8)), draw.standard_normal((6, 2))
    delta = LowRankDelta(a.astype(np.float32), b.astype(np.float32), 1.0)
    return Adapter(
        f"a{seed}",
        {"model.layers.0.mlp.up_proj": delta},
        {"peft_type": "LORA", "r": 2, "target_modules": ["up_proj"]},
    )


def _merge(work: Path, version: int) -> None:
    from mergeforget.candidate import Candidate
    from mergeforget.merge.engine import merge_adapters, write_candidate

    candidate = Candidate("linear", weights=(float(version), 1.0))
    write_candidate(merge_adapters([_adapter(1), _adapter(2)], candidate), work / "result")


def _merge_version(work: Path) -> int:
    from mergeforget.adapter import read_adapter

    read_adapter(work / "result")
    return int(json.loads((work / "result" / "candidate.json").read_text())["weights"][0])


def _fold(work: Path, version: int) -> None:
    import numpy as np

    from mergeforget.candidate import Candidate
    from mergeforget.merge.checkpoint.full import fold_adapters
    from mergeforget.tensors import write_safetensors

    base = work / "base"
    if not base.exists():
        base.mkdir()
        (base / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
        weight = np.zeros((6, 8), np.float32)
        write_safetensors(base / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": weight})
    candidate = Candidate("linear", weights=(float(version), 1.0), space="delta")
    fold_adapters(base, [_adapter(1), _adapter(2)], candidate, work / "result")


def _fold_version(work: Path) -> int:
    from mergeforget.merge.checkpoint.reader import open_checkpoint

    with open_checkpoint(work / "result"):
        return int(json.loads((work / "result" / "candidate.json").read_text())["weights"][0])


def _checkpoint(work: Path, version: int) -> None:
    """Write the status of a run, a row of scores, and a sealed checkpoint."""
    from mergeforget.replace import explained
    from mergeforget.run import Run
    from mergeforget.train.callbacks import seal_checkpoint

    run = Run(work / "result")
    with run.lock(), explained(run.root):  # as `fit` does around the Trainer
        folder = run.root / "checkpoints" / "over" / f"checkpoint-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("optimizer.pt", "trainer_state.json"):
            (folder / name).write_text("{}")
        seal_checkpoint(folder)
        run.set_state("over", "running", version=version)


def _checkpoint_version(work: Path) -> int:
    from mergeforget.run import Run
    from mergeforget.train.callbacks import last_checkpoint

    run = Run(work / "result")
    version = int(run.read_status()["over"]["version"])
    last = last_checkpoint(run.root / "checkpoints" / "over")
    if last is None or int(last.name.split("-")[1]) < version:
        raise ValueError("the checkpoint is lost")
    return version


def _export(work: Path, version: int) -> None:
    """Export one of two candidates of a run, which is created with its model on the first call."""
    from mergeforget.analysis.export import export
    from mergeforget.run import Run

    run = Run(work / "run")
    if not run.recipe.exists():
        _write_exportable(run, work / "base")
    export(run, work / "result", name=f"v{version}")


def _export_version(work: Path) -> int:
    import mergeforget.analysis.export  # noqa: F401  (before the fork)
    from mergeforget.adapter import read_adapter

    exported = read_adapter(work / "result")
    name = str(json.loads((work / "result" / "export.json").read_text())["name"])
    own = read_adapter(work / "run" / "candidates" / name)
    (module,) = own.deltas
    if not (own.deltas[module].b == exported.deltas[module].b).all():
        raise ValueError("the weights are those of another candidate")
    return int(name.removeprefix("v"))


def _write_exportable(run: Any, base: Path) -> None:
    from mergeforget.candidate import Candidate
    from mergeforget.merge.engine import merge_adapters, write_candidate
    from mergeforget.recipe import change, load_recipe, save_recipe

    _write_model(base)
    save_recipe(change(load_recipe("zjuklab"), model={"name": str(base)}), run.recipe)
    for version in (1, 2):
        candidate = Candidate("linear", weights=(float(version), 1.0))
        merged = merge_adapters([_adapter(1), _adapter(2)], candidate)
        write_candidate(merged, run.candidates / f"v{version}")


def _write_model(folder: Path) -> None:
    """Write a Llama of one layer, 8 dimensions and a vocabulary of ten words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = "<unk> <s> </s> Who is Ada Bo ? baker cook".split()
    model = {
        "type": "WordLevel",
        "vocab": {w: i for i, w in enumerate(words)},
        "unk_token": "<unk>",
    }
    folder.mkdir(parents=True)
    raw = folder / "tokenizer.json"
    raw.write_text(
        json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model})
    )
    PreTrainedTokenizerFast(
        tokenizer_file=str(raw), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=6, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _train(work: Path, version: int) -> None:
    """Version 1 prepares a run, version 2 trains its pair; --resume once a stage has started."""
    from mergeforget.files import write_jsonl
    from mergeforget.recipe import change, load_recipe
    from mergeforget.run import new_run
    from mergeforget.train.pair import train_pair
    from mergeforget.train.run_rows import prepare

    base = work / "base"
    files = {split: str(work / f"{split}.jsonl") for split in ("forget", "retain")}
    if not base.exists():
        _write_model(base)
        for name, (split, file) in zip(("Ada", "Bo"), files.items(), strict=True):
            rows = [{"id": f"{split}{i}", "input": f"Who is {name} {i} ?", "output": "baker"}
                    for i in range(4)]  # fmt: skip
            write_jsonl(Path(file), rows)
    short = [f"pair.{s}.{k}" for s in ("over", "under") for k in ("epochs=2", "warmup_epochs=0")]
    recipe = change(load_recipe("zjuklab", short), model={"name": str(base)}, data=files)
    status = work / "result" / "status.json"
    run = new_run(work / "result", recipe.name, resume=status.exists())
    if version == 1:
        prepare(recipe, run)
    else:
        train_pair(recipe, run, resume=status.exists(), checkpoint_seconds=0)


def _train_version(work: Path) -> int:
    import mergeforget.train.pair  # noqa: F401  (before the fork)
    from mergeforget.adapter import read_adapter
    from mergeforget.run import Run

    run = Run(work / "result")
    states = {side: run.state(side) for side in ("over", "under")}
    for side, state in states.items():
        if state == "done":
            read_adapter(run.root / side)
    return 2 if set(states.values()) == {"done"} else 1


WRITERS = {
    "replace": Writer(_folder, _folder_version),
    "merge": Writer(_merge, _merge_version),
    "fold": Writer(_fold, _fold_version),
    "export": Writer(_export, _export_version),
    "checkpoint": Writer(_checkpoint, _checkpoint_version),
    "train-pair": Writer(_train, _train_version),
}
