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
from mergeforget.errors import UsageError
from mergeforget.files import read_json, read_jsonl, write_jsonl
from mergeforget.processes import check_launch
from mergeforget.train.order import Alternating, Chunked, Dealt, Order, Together

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
    [Together(11, 2, 0), Alternating(11, 2, 4, 0), Chunked(11, 5, 2, 1, 4, 0)],
    ids=["together", "alternating", "chunks"],
)
def test_every_step_holds_the_same_rows(order: Order, processes: int) -> None:
    each = [list(Dealt(order, 4, process, processes)) for process in range(processes)]
    assert {len(parts) for parts in each} == {len(Dealt(order, 4, 0, processes))}
    whole, size = list(order), -(-4 // processes)
    for step in range(-(-len(whole) // 4)):
        wanted = [p for part in whole[4 * step : 4 * step + 4] for p in part if p.counts]
        mine = [p for parts in each for part in parts[size * step : size * step + size]
                for p in part if p.counts]  # fmt: skip
        assert sorted(mine) == sorted(wanted)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_launchers_that_cut_up_the_model_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UsageError, match="is not supported.*quantization: 4bit"):
        check_launch()


@pytest.fixture
def arguments(tiny_folder: Path, tmp_path: Path) -> list[str]:
    people = {"forget": 1, "retain": 1, "holdout": 1}
    for split, some in make_people(people, seed=1, tasks=("Task2",)).items():
        write_jsonl(tmp_path / f"{split}.jsonl", [row.to_dict() for row in some[:5]])
    (tmp_path / "two.yaml").write_text(RECIPE.replace("MODEL", str(tiny_folder)))
    files = [w for s in people for w in (f"--{s}", str(tmp_path / f"{s}.jsonl"))]
    return ["train-pair", "--recipe", str(tmp_path / "two.yaml"), *files, "--memorise"]


def launch(arguments: list[str], folder: Path) -> list[tuple[int, str, str]]:
    """As ``accelerate launch --num_processes 2 -m mergeforget``: exit status, stdout, stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    more = {"MERGEFORGET_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in ("0", "1"):
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "mergeforget", *arguments, "--out", str(folder), "--json"],
                env=os.environ | common | more | {"RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=600) for process in started]
    return [(p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


@pytest.mark.slow
def test_two_processes_give_the_adapters_of_one(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(cli.main, [*arguments, "--out", str(one)])
    assert done.exit_code == 0, done.output
    main, other = launch(arguments, two)
    assert main[0] == other[0] == 0, main[2] + other[2]
    assert json.loads(main[1])["run"] == str(two) and not other[1]
    for side in ("over", "under"):
        ours, theirs = (load_file(f / side / "adapter_model.safetensors") for f in (two, one))
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-5)
    for name in ("history.jsonl", "proxies.jsonl"):
        lines = [read_jsonl(folder / name) for folder in (one, two)]
        assert len(lines[0]) == len(lines[1]) > 0
        for mine, its in zip(*lines, strict=True):
            assert mine.keys() == its.keys()
            assert mine.get("loss", 0) == pytest.approx(its.get("loss", 0), rel=1e-4, abs=1e-5)
            assert mine.get("terms", {}) == pytest.approx(its.get("terms", {}), rel=1e-4, abs=1e-5)
    assert read_json(two / "manifest.json")["stages"]["over"]["processes"] == 2
    again, waits = launch(arguments, two)  # the run is there already: both end, one says why
    assert again[0] == waits[0] == 4 and "--resume" in again[2] and "--resume" not in waits[2]
