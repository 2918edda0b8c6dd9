"""Two processes that train together give what one gives, and write each file once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mergeforget import cli
from mergeforget.data.people import make_people
from mergeforget.distributed import check_launch, sharded
from mergeforget.errors import RecipeError, UsageError
from mergeforget.files import read_json, read_jsonl, write_jsonl
from mergeforget.recipe import load_recipe
from mergeforget.train.memorise import check_whole
from mergeforget.train.objective import check_recipe
from mergeforget.train.samplers import (
    AlternatingSampler,
    ChunkedSampler,
    JointSampler,
    Order,
    ShardedSampler,
)

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
FSDP |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}  # the launcher's default
RECIPE = """
name: two
model: {name: MODEL}
memorise: {epochs: 1, batch_size: 4}
pair:
  over:
    objective:
      - {loss: npo, on: forget, weight: 0.4, reduction: batch_mean}
      - {loss: gd, on: retain, weight: 0.4}
      - {loss: kl, on: retain, weight: 0.2, mask: tokens}
    epochs: 2
    batch_size: 1
    gradient_accumulation: 4
    learning_rate: 1e-2
    lora: {r: 4, lora_dropout: 0.0}
    snapshots: 1
    watch: {every: 2, sample: 2, best_by: retain_nll}
  under:
    objective: [{loss: ga, on: forget}, {loss: gd, on: retain}]
    direction: ngdiff
    optimizer: sgd
    schedule: constant
    auto_rate: {method: probe, every: 2}
    batches: together
    epochs: 1
    batch_size: 2
    gradient_accumulation: 3
    learning_rate: 1e-2
    lora: {r: 4, lora_dropout: 0.0}
    snapshots: 1
"""


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(
    "order",
    [JointSampler(11, 2, 0), AlternatingSampler(11, 2, 4, 0), ChunkedSampler(11, 5, 2, 1, 4, 0)],
    ids=["together", "alternating", "chunks"],
)
def test_every_step_has_the_same_rows(order: Order, processes: int) -> None:
    each = [list(ShardedSampler(order, 4, process, processes)) for process in range(processes)]
    assert {len(parts) for parts in each} == {len(ShardedSampler(order, 4, 0, processes))}
    whole, size = list(order), -(-4 // processes)
    for step in range(-(-len(whole) // 4)):
        wanted = [p for part in whole[4 * step : 4 * step + 4] for p in part if p.counts]
        mine = [p for parts in each for part in parts[size * step : size * step + size]
                for p in part if p.counts]  # fmt: skip
        assert sorted(mine) == sorted(wanted)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings of a launcher, which a test may change."""
    said = {"WORLD_SIZE": "2"} | FSDP
    monkeypatch.setattr(os, "environ", said)
    return said


@pytest.mark.parametrize(
    ("more", "trains", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, True, "DeepSpeed.*--use_fsdp --fsdp_version 2"),
        ({}, False, "for training adapters.*--multi_gpu"),
        ({"FSDP_VERSION": "1"}, True, "FSDP 1 .*--fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, True, "--fsdp_offload_params is not.*leave it out"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, True, "gradient_checkpointing: true"),
    ],
)
def test_unsupported_sharding_launchers_are_refused(
    more: dict[str, str], trains: bool, said: str, environment: dict[str, str]
) -> None:
    environment |= more
    with pytest.raises(UsageError, match=said):
        check_launch(trains=trains)
    assert not sharded()


def test_fsdp_is_requested_by_the_launcher(environment: dict[str, str]) -> None:
    check_launch(trains=True)
    assert sharded() and "ACCELERATE_USE_FSDP" not in environment
    check_launch(trains=True)
    assert sharded()
    environment["WORLD_SIZE"] = "1"
    assert not sharded()


def test_losses_on_inner_layers_require_one_process_or_fsdp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe("rmu")
    check_recipe(recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="rmu reads a layer below.*--use_fsdp --fsdp_version 2"):
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model: {name: MODEL, quantization: 4bit}", "FSDP cannot shard 4-bit weights"),
        ("full: {last_layers: 1}", "with FSDP only adapters"),
    ],
)
def test_models_that_cannot_be_sharded_are_refused(
    change: str, said: str, environment: dict[str, str], tmp_path: Path
) -> None:
    old = (
        "model: {name: MODEL}" if change.startswith("model") else "lora: {r: 4, lora_dropout: 0.0}"
    )
    (tmp_path / "two.yaml").write_text(RECIPE.replace(old, change))
    with pytest.raises(RecipeError, match=said + ".*--multi_gpu"):
        check_recipe(load_recipe(tmp_path / "two.yaml"))


def test_memorising_is_for_whole_models(environment: dict[str, str]) -> None:
    check_whole()
    check_launch(trains=True)
    with pytest.raises(UsageError, match="once with --multi_gpu instead of --use_fsdp"):
        check_whole()


@pytest.fixture
def arguments(tiny_folder: Path, tmp_path: Path) -> list[str]:
    people = {"forget": 1, "retain": 1, "holdout": 1}
    for split, some in make_people(people, seed=1, tasks=("Task2",)).items():
        write_jsonl(tmp_path / f"{split}.jsonl", [row.to_dict() for row in some[:5]])
    (tmp_path / "two.yaml").write_text(RECIPE.replace("MODEL", str(tiny_folder)))
    files = [w for s in people for w in (f"--{s}", str(tmp_path / f"{s}.jsonl"))]
    return ["train-pair", "--recipe", str(tmp_path / "two.yaml"), *files, "--memorise"]


def launch(arguments: list[str], folder: Path, **more: str) -> list[tuple[int, str, str]]:
    """As ``accelerate launch --num_processes 2 -m mergeforget``: exit status, stdout, stderr."""
    command = ["-m", "mergeforget", *arguments, "--out", str(folder), "--json"]
    return start(command, folder / "cache", **more)


def start(command: list[str], cache: Path, **more: str) -> list[tuple[int, str, str]]:
    """Run Python in two processes that find each other: exit status, stdout, stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common |= {"MERGEFORGET_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in ("0", "1"):
        started.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | common | more | {"RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=1200) for process in started]
    return [(p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


def same(ours: Path, theirs: Path) -> None:
    """Check that two runs have the same adapters, and the same figures where both have any."""
    for side in ("over", "under"):
        mine, its = (load_file(f / side / "adapter_model.safetensors") for f in (ours, theirs))
        assert mine.keys() == its.keys()
        for key, value in its.items():
            torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-5)
    for name in ("history.jsonl", "proxies.jsonl"):
        lines = read_jsonl(ours / name)
        stages = {line["stage"] for line in lines}
        others = [line for line in read_jsonl(theirs / name) if line["stage"] in stages]
        assert len(lines) == len(others) > 0
        for line, other in zip(lines, others, strict=True):
            assert line.keys() == other.keys()
            assert line.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-4, abs=1e-5)
            terms = pytest.approx(other.get("terms", {}), rel=1e-4, abs=1e-5)
            assert line.get("terms", {}) == terms


@pytest.mark.slow
def test_two_processes_give_the_adapters_of_one(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(cli.main, [*arguments, "--out", str(one)])
    assert done.exit_code == 0, done.output
    known = {"MERGEFORGET_CACHE": str(tmp_path / "cache")}  # the memorised model again
    for folder, more in ((two, {}), (parts, FSDP | known)):
        main, other = launch(arguments, folder, **more)
        assert main[0] == other[0] == 0, main[2] + other[2]
        assert json.loads(main[1])["run"] == str(folder) and not other[1]
        same(folder, one)
        stage = read_json(folder / "manifest.json")["stages"]["over"]
        assert stage["processes"] == 2 and stage.get("sharded", False) == bool(more)
    again, waits = launch(
        arguments, two
    )  # the run exists: both processes end, one prints the reason
    assert again[0] == waits[0] == 4 and "--resume" in again[2] and "--resume" not in waits[2]
