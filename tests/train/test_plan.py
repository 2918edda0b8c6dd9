"""The plan of a training: steps as they are taken, sizes as they are, no weight read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from click.testing import CliRunner

from mergeforget.cli import main
from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl, write_jsonl
from mergeforget.recipe import Lora, ModelSpec, Term, Training, change, load_recipe
from mergeforget.run import Run
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.plan import Plan, count_steps, empty_model, one_pass, plan, plan_recipe
from mergeforget.train.tokenize import encode_sets

SETS = {
    "forget": [Row(f"f{i}-qa0", f"Who is {i}?", f"Ada {i}.", "", "forget") for i in range(7)],
    "retain": [Row(f"r{i}-qa0", f"What is {i}?", f"Number {i}.", "", "retain") for i in range(5)],
}
TERMS = [Term(loss="npo", on="forget"), Term(loss="kl", on="retain")]


def training(**more: Any) -> Training:
    settings: dict[str, Any] = {
        "objective": TERMS, "epochs": 2, "batch_size": 2, "gradient_accumulation": 2,
        "snapshots": 1, "lora": Lora(r=4, lora_alpha=4, lora_dropout=0.1),
    }  # fmt: skip
    return Training(**settings | more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"batches": "alternating"},
        {"batches": "by_set"},
        {"chunk_rows": 3},
        {"folds": 3},
        {"gradient_accumulation": "epoch"},
    ],
    ids=["together", "alternating", "by_set", "chunks", "folds", "epoch"],
)
def test_planned_steps_equal_those_of_a_training(
    more: dict[str, Any], tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    settings = training(**more)
    train_adapter(tiny_model, tiny_tokenizer, SETS, settings, TrainingJob(Run(tmp_path), "over"))
    sizes = {name: len(rows) for name, rows in SETS.items()}
    folds = [one.fold for one in encode_sets(tiny_tokenizer, SETS, settings)["forget"]]
    assert count_steps(settings, sizes, folds) == len(read_jsonl(tmp_path / "history.jsonl"))


@pytest.mark.parametrize("more", [{}, {"chunk_rows": 3}], ids=["together", "chunks"])
def test_warm_up_has_the_planned_length(
    more: dict[str, Any], tiny_folder: Path, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    settings = training(batch_size=1, gradient_accumulation=1, warmup_epochs=1.0, **more)
    train_adapter(tiny_model, tiny_tokenizer, SETS, settings, TrainingJob(Run(tmp_path), "over"))
    rates = [0.0, *(x["learning_rate"] for x in read_jsonl(tmp_path / "history.jsonl"))]
    climbed = sum(new > old for old, new in pairwise(rates))
    encoded = encode_sets(tiny_tokenizer, SETS, settings)
    found = plan(ModelSpec(name=str(tiny_folder)), encoded, settings, flops=1e9)
    assert climbed == found.warmup_steps == 7


def test_planned_sizes_equal_those_of_the_adapted_model(
    tiny_folder: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model()
    size = sum(p.numel() for p in base.parameters())
    lora = Lora(r=4, lora_alpha=4).model_dump(exclude_none=True)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora))
    settings = training()
    encoded = encode_sets(tiny_tokenizer, SETS, settings)
    found = plan(ModelSpec(name=str(tiny_folder)), encoded, settings, flops=1e9)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert (found.parameters, found.trained) == (size, trained)
    assert found.memory["optimizer"] == 2 * found.memory["gradients"] == 8 * trained
    assert found.memory["total"] == sum(v for k, v in found.memory.items() if k != "total")
    assert (found.effective_batch, found.steps_per_epoch, found.steps) == (4, 2, 4)
    assert found.epoch_tokens == sum(len(row) for row in encoded["forget"])


def test_estimated_autograd_memory_equals_the_measured_one(
    tiny_folder: Path, make_model: Callable[..., Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    settings = training(lora=Lora(r=4, lora_alpha=4, lora_dropout=0.0))
    counted = one_pass(empty_model(ModelSpec(name=str(tiny_folder)), settings, "cpu"), 24, False)
    lora = settings.lora.model_dump(exclude_none=True)
    policy = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", **lora)).train()
    weights = {p.data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids, whole = torch.zeros(1, 24, dtype=torch.long), torch.zeros(1, 1, 24, 24)
        policy(input_ids=ids, attention_mask=whole, use_cache=False, logits_to_keep=1)
    assert counted.kept_bytes == sum(kept.values())


def test_memory_falls_with_checkpointing_and_grows_with_row_length(tiny_folder: Path) -> None:
    spec, settings = ModelSpec(name=str(tiny_folder)), training()
    short, long = (one_pass(empty_model(spec, settings, "cpu"), n, False) for n in (20, 40))
    saved = one_pass(empty_model(spec, settings, "cpu"), 40, True)
    assert short.kept_bytes < long.kept_bytes and saved.kept_bytes < long.kept_bytes
    assert short.forward_flops < long.forward_flops


def test_plan_reads_no_weights(tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (model / "model.safetensors").write_bytes(b"no weights at all")
    for split, rows in SETS.items():
        write_jsonl(tmp_path / f"{split}.jsonl", [row.to_dict() for row in rows])
    files = [w for s in SETS for w in (f"--{s}", str(tmp_path / f"{s}.jsonl"))]
    arguments = ["plan", "zjuklab", "--model", str(model), *files]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["pair.over"]["steps"] == 10 and found["pair.over"]["warmup_steps"] == 2
    assert found["pair.under"]["effective_batch"] == 7 and found["pair.under"]["steps"] == 5
    text = CliRunner().invoke(main, arguments).stdout
    assert "steps       10 (2 per epoch, 2 warm-up)" in text and "MB" in text
    again = (
        CliRunner().invoke(main, [*arguments, "--forget", str(tmp_path / "forget.jsonl")]).stdout
    )
    assert "1-forget pair.over\n" in again and "2-forget pair.under\n" in again
    assert "2 requests: at least" in again


FOUR: tuple[None, Literal["4bit"]] = (None, "4bit")


def test_four_bit_linear_layers_take_an_eighth_of_the_memory(
    tiny_folder: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    settings = training()
    encoded = encode_sets(tiny_tokenizer, SETS, settings)
    plain, four = (
        plan(ModelSpec(name=str(tiny_folder), quantization=q), encoded, settings, flops=1e9)
        for q in FOUR
    )
    layers = [p for n, p in tiny_model.named_parameters() if "proj" in n]
    saved = sum(p.numel() for p in layers) * (4 - 4.127 / 8)
    assert plain.memory["weights"] - four.memory["weights"] == round(saved)


def test_a_training_until_a_condition_is_planned_with_its_twins_and_checks(
    tiny_folder: Path, tmp_path: Path
) -> None:
    splits = {"forget": "Ann Lee", "retain": "Bob May", "holdout": "Eve Day"}
    for split, name in splits.items():
        asked = [f"When was {name} {i} born?" for i in range(6)]
        rows = [{"id": f"{split}{i}", "input": q, "output": f"{i + 1} May 1970"}
                for i, q in enumerate(asked)]  # fmt: skip
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    data = {split: str(tmp_path / f"{split}.jsonl") for split in splits}

    def planned(*settings: str) -> dict[str, Plan]:
        recipe = load_recipe("level", settings)
        return plan_recipe(change(recipe, model={"name": str(tiny_folder)}, data=data), flops=1e9)

    found = planned()
    assert set(found) == {"pair.over"}  # under is a snapshot of it
    one = found["pair.over"]
    assert one.rows["held"] > one.rows["forget"] == 6
    assert one.steps == 240 and one.expected_steps == 18 * 2 and one.effective_batch == 4
    half = planned("pair.over.until.max_steps=20")["pair.over"]
    assert half.steps == half.expected_steps == 20
    assert half.seconds == pytest.approx(one.seconds * 6 / 10, rel=0.1)
